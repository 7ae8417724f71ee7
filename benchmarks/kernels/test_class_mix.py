"""`class_mix` against eager PyTorch and torch.compile, and the product of the matrices alone.

pytest benchmarks/kernels/test_class_mix.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ptgm_fast.kernels import class_mix
from ptgm_fast.kernels.class_mix import reference

SIZES = [(256, 1000, 128, None), (256, 1000, 128, 5), (256, 1000, 128, 50), (64, 52, 16, None)]


def label(size: tuple[int, int, int, int | None]) -> str:
    num, num_classes, dim, top_k = size
    return f"{num}x{num_classes}x{dim}" + (f" top {top_k}" if top_k else "")


@pytest.mark.parametrize("size", SIZES, ids=label)
@pytest.mark.parametrize("contender", ["fused", "eager", "compile", "product alone"])
def test_class_mix(
    benchmark: Any, threads: int, size: tuple[int, int, int, int | None], contender: str
) -> None:
    """float32. "product alone" starts from probabilities: what any dense implementation has left to do."""
    benchmark.group = f"class_mix {label(size)}, {threads} threads"
    num, num_classes, dim, top_k = size
    torch.manual_seed(0)
    logits, embedding = 3 * torch.randn(num, num_classes), torch.randn(num_classes, dim)
    probabilities = logits.softmax(1)

    def eager() -> Tensor:
        return reference.class_mix(logits, embedding, 1.0, top_k)

    calls: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: class_mix(logits, embedding, top_k=top_k),
        "eager": eager,
        "product alone": lambda: probabilities @ embedding,
    }
    if contender == "compile":
        calls["compile"] = torch.compile(eager)
    if contender != "product alone":
        torch.testing.assert_close(calls[contender](), eager(), rtol=1e-4, atol=1e-5)
    benchmark.pedantic(calls[contender], rounds=200, warmup_rounds=20)
