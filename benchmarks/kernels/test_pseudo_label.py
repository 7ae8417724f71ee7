"""`pseudo_label` against eager PyTorch and torch.compile.

pytest benchmarks/kernels/test_pseudo_label.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ptgm_fast.kernels import pseudo_label

pytestmark = pytest.mark.usefixtures("kept_memory")

SIZES = [(64, 10), (256, 1000), (64, 21841)]
THRESHOLD = 0.8


def plain(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As one writes it in PyTorch."""
    confidence, labels = logits.softmax(1).max(1)
    return labels, confidence, confidence >= THRESHOLD


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("contender", ["fused", "compile", "eager"])
def test_pseudo_label(benchmark: Any, threads: int, size: tuple[int, int], contender: str) -> None:
    benchmark.group = f"pseudo_label {size[0]}x{size[1]}, {threads} threads"
    torch.manual_seed(0)
    logits = torch.randn(size) * 4
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "fused": lambda: pseudo_label(logits, threshold=THRESHOLD, impl="cpu"),
        "eager": lambda: plain(logits),
    }
    if contender == "compile":
        torch._dynamo.reset()
        compiled = torch.compile(plain)
        calls["compile"] = lambda: compiled(logits)
    for got, want in zip(calls[contender](), plain(logits), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    benchmark.pedantic(calls[contender], rounds=300 if size[1] <= 1000 else 30, warmup_rounds=20)
