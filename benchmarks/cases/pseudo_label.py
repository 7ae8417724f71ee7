"""`pseudo_label` against eager PyTorch and torch.compile. float32."""

from __future__ import annotations

from functools import partial

import torch
from registry import Case, Work
from torch import Tensor

from ptgm_fast.kernels import pseudo_label

SIZES = [(64, 10), (256, 1000), (64, 21841)]
THRESHOLD = 0.8


def plain(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch."""
    confidence, labels = logits.softmax(1).max(1)
    return labels, confidence, confidence >= THRESHOLD


def work(size: tuple[int, int], device: torch.device) -> Work:
    torch.manual_seed(0)
    logits = (torch.randn(size) * 4).to(device)
    impl = "triton" if device.type == "cuda" else "cpu"
    compiled = torch.compile(plain)

    def check(contender: str, found: tuple[Tensor, ...]) -> None:
        for got, want in zip(found, plain(logits), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=0)

    calls = {
        "fused": lambda: pseudo_label(logits, threshold=THRESHOLD, impl=impl),
        "compile": lambda: compiled(logits),
        "eager": lambda: plain(logits),
    }
    return Work(calls, check)


CASES = [
    Case(
        f"pseudo_label {size[0]}x{size[1]}",
        "kernels",
        ("fused", "compile", "eager"),
        partial(work, size),
        calls=300 if size[1] <= 1000 else 30,
        warmup=20,
        on_gpu=("fused", "compile", "eager"),
    )
    for size in SIZES
]
