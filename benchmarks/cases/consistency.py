"""`consistency` with its gradient against eager PyTorch and torch.compile. One loss per sample, float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from registry import Case, Work
from torch import Tensor

from ptgm_fast.kernels import consistency
from ptgm_fast.kernels.consistency import cpu_impl

# Samples, classes, and the share of samples that count.
SIZES = [(256, 1000, 1.0), (256, 1000, 0.02), (64, 10, 1.0), (64, 10, 0.5), (64, 21841, 0.1)]
TEMPERATURE, THRESHOLD = 0.4, 0.8
Loss = Callable[[Tensor, Tensor], Tensor]


def uda(weak: Tensor, strong: Tensor) -> Tensor:
    """Plain PyTorch."""
    with torch.no_grad():
        mask = weak.softmax(1).amax(1) >= THRESHOLD
        target = (weak / TEMPERATURE).softmax(1)
    return F.kl_div(strong.log_softmax(1), target, reduction="none").sum(1) * mask


def fixmatch(weak: Tensor, strong: Tensor) -> Tensor:
    """Plain PyTorch."""
    with torch.no_grad():
        confidence, label = weak.softmax(1).max(1)
    return F.cross_entropy(strong, label, reduction="none") * (confidence >= THRESHOLD)


def inputs(
    num: int, classes: int, share: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both views, with a fraction `share` of the weak rows confident, and the gradient that a mean propagates."""
    torch.manual_seed(0)
    weak, strong = torch.randn(2, num, classes).to(device)
    weak[: round(num * share), 0] += 30
    return weak, strong.requires_grad_(), torch.full((num,), 1 / num, device=device)


def work(plain: Loss, size: tuple[int, int, float], device: torch.device) -> Work:
    """The gradient with respect to the logits.

    "no autograd": the two calls into C++ without torch's engine. "sum alone": strong.sum(1) and its gradient, the minimum
    cost of anything that goes through the engine.
    """
    method = plain.__name__
    weak, strong, grad = inputs(*size, device)
    detached = strong.detach()
    options: dict[str, Any] = {
        "method": method,
        "threshold": THRESHOLD,
        "temperature": TEMPERATURE,
        "impl": "triton" if device.type == "cuda" else "cpu",
    }

    def with_autograd(loss: Loss) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(loss(weak, strong), strong, grad)[0]

    def without() -> Tensor:
        _, gradient, counts = cpu_impl.consistency(
            weak, detached, None, None, method, TEMPERATURE, THRESHOLD, True, False
        )
        return cpu_impl.scale(gradient, counts, grad, torch.float32)

    calls = {
        "fused": with_autograd(lambda w, s: consistency(w, s, **options)),
        "fused, no autograd": without,
        "sum alone": with_autograd(lambda w, s: s.sum(1)),
        "compile": with_autograd(torch.compile(plain)),
        "eager": with_autograd(plain),
    }

    def check(contender: str, found: Tensor) -> None:
        torch.testing.assert_close(found, calls["eager"](), rtol=1e-4, atol=1e-8)

    return Work(calls, check)


CASES = [
    Case(
        f"{plain.__name__} {size[0]}x{size[1]}, {size[2]:.0%} count",
        "kernels",
        ("fused", "fused, no autograd", "sum alone", "compile", "eager"),
        partial(work, plain, size),
        calls=300 if size[1] <= 1000 else 30,
        warmup=20,
        on_gpu=("fused", "sum alone", "compile", "eager"),
    )
    for plain in (uda, fixmatch)
    for size in SIZES
]
