"""`consistency` with its gradient against the losses of USB's package.

pytest benchmarks/kernels/test_semilearn.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import usb
from torch import Tensor

from ptgm_fast.kernels import consistency

pytestmark = pytest.mark.usefixtures("kept_memory")

SIZES = [(256, 1000, 1.0), (256, 1000, 0.02), (64, 10, 0.5)]
TEMPERATURE, THRESHOLD = 0.4, 0.8


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}, {s[2]:.0%} count")
@pytest.mark.parametrize("contender", ["fused", "semilearn"])
@pytest.mark.parametrize("method", ["uda", "fixmatch"])
def test_mean_loss(
    benchmark: Any, threads: int, method: str, size: tuple[int, int, float], contender: str
) -> None:
    """From logits of both views to the gradient of the mean loss, float32: mask, pseudo label, loss, backward.

    semilearn: `FixedThresholdingHook`, `PseudoLabelingHook` and `ConsistencyLoss`, called as in its train steps.
    """
    num, classes, share = size
    benchmark.group = f"{method} mean {num}x{classes}, {share:.0%} count, {threads} threads"
    torch.manual_seed(0)
    weak, strong = torch.randn(2, num, classes)
    weak[: round(num * share), 0] += 30
    strong.requires_grad_()
    usb.assert_same_loss(method, weak, strong, TEMPERATURE, THRESHOLD)
    options: dict[str, Any] = {"temperature": TEMPERATURE} if method == "uda" else {}
    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fused": lambda w, s: consistency(
            w, s, method=method, threshold=THRESHOLD, impl="cpu", **options
        ).mean(),
        "semilearn": usb.unlabelled_loss(method, TEMPERATURE, THRESHOLD),
    }
    loss = calls[contender]
    benchmark.pedantic(
        lambda: torch.autograd.grad(loss(weak, strong), strong)[0], rounds=300, warmup_rounds=20
    )
