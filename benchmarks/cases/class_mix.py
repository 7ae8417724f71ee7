"""`class_mix` against eager PyTorch and torch.compile, and the product of the matrices alone. float32."""

from __future__ import annotations

from functools import partial

import torch
from registry import Case, Work
from torch import Tensor

from ptgm_fast.kernels import class_mix
from ptgm_fast.kernels.class_mix import reference

SIZES = [(256, 1000, 128, None), (256, 1000, 128, 5), (256, 1000, 128, 50), (64, 52, 16, None)]


def work(size: tuple[int, int, int, int | None], device: torch.device) -> Work:
    """ "product alone" starts from probabilities: what any dense implementation has left to do."""
    num, num_classes, dim, top_k = size
    torch.manual_seed(0)
    logits = (3 * torch.randn(num, num_classes)).to(device)
    embedding = torch.randn(num_classes, dim).to(device)
    probabilities = logits.softmax(1)

    def eager() -> Tensor:
        return reference.class_mix(logits, embedding, 1.0, top_k)

    def check(contender: str, found: Tensor) -> None:
        torch.testing.assert_close(found, eager(), rtol=1e-4, atol=1e-5)

    calls = {
        "fused": lambda: class_mix(logits, embedding, top_k=top_k),
        "eager": eager,
        "compile": torch.compile(eager),
        "product alone": lambda: probabilities @ embedding,
    }
    return Work(calls, check)


def name(size: tuple[int, int, int, int | None]) -> str:
    num, num_classes, dim, top_k = size
    return f"class_mix {num}x{num_classes}x{dim}" + (f" top {top_k}" if top_k else "")


CASES = [
    Case(
        name(size),
        "kernels",
        ("fused", "eager", "compile", "product alone"),
        partial(work, size),
        calls=200,
        warmup=20,
        on_gpu=("fused", "eager", "compile", "product alone"),
    )
    for size in SIZES
]
