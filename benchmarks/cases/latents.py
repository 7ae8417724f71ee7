"""`latents` truncated at 2 against scipy, eager PyTorch and torch.compile; `class_labels`. float32, int64.

The contenders without "addressed" draw from a stateful generator: this is less than the op provides, but the usual way to write
it. The compiled reference is not a contender: inductor's C++ for its ten rounds was still compiling after nine minutes.
"""

from __future__ import annotations

import math

import torch
from registry import Case, Work
from scipy import stats
from torch import Tensor

from ptgm_fast.kernels import class_labels, latents
from ptgm_fast.kernels.latents import reference

NUM, DIM = 256, 128
TRUNCATION = 0.5
MASS = math.erf(math.sqrt(2))
LAW = stats.truncnorm(-2, 2, scale=TRUNCATION)
NUM_CLASSES = 1000


def truncated(device: torch.device) -> Work:
    """Truncated normal numbers, 256 x 128."""
    out = torch.empty(NUM, DIM, device=device)
    torch.manual_seed(0)

    def by_inverse() -> Tensor:
        """The same distribution in PyTorch: a stateful uniform draw through erfinv."""
        u = torch.rand(NUM, DIM, device=device) * (2 * MASS) - MASS
        return (torch.erfinv(u) * math.sqrt(2)).clamp(-2, 2) * TRUNCATION

    def addressed() -> Tensor:
        """The reference: the numbers of the fused op, operation by operation."""
        return reference.latents(NUM, DIM, 1, 0, None, TRUNCATION, torch.float32, device)

    def check(contender: str, found: Tensor) -> None:
        if contender == "fused":
            assert torch.equal(found, addressed())
        z = found.double()
        assert z.abs().max() <= 2 * TRUNCATION
        # Six standard errors of the variance.
        assert abs(z.var().item() / LAW.var() - 1) < 6 * math.sqrt(2 / z.numel())

    calls = {
        "fused": lambda: latents(NUM, DIM, seed=1, truncation=TRUNCATION, device=device),
        "scipy truncnorm": lambda: torch.from_numpy(LAW.rvs((NUM, DIM))),
        "eager trunc_normal_": lambda: torch.nn.init.trunc_normal_(
            out, std=TRUNCATION, a=-1.0, b=1.0
        ),
        "eager erfinv": by_inverse,
        "compile erfinv": torch.compile(by_inverse),
        "eager addressed": addressed,
    }
    return Work(calls, check)


def labels(device: torch.device) -> Work:
    """Class labels of a batch: the cost of a call."""

    def check(contender: str, found: Tensor) -> None:
        if contender == "fused":
            assert torch.equal(found, reference.class_labels(NUM, NUM_CLASSES, 1, 0, None, device))
        assert found.shape == (NUM,)
        assert found.min() >= 0
        assert found.max() < NUM_CLASSES

    calls = {
        "fused": lambda: class_labels(NUM, NUM_CLASSES, seed=1, device=device),
        "randint": lambda: torch.randint(NUM_CLASSES, (NUM,), device=device),
    }
    return Work(calls, check)


CASES = [
    Case(
        f"latents truncated, {NUM}x{DIM}",
        "kernels",
        (
            "fused",
            "scipy truncnorm",
            "eager trunc_normal_",
            "eager erfinv",
            "compile erfinv",
            "eager addressed",
        ),
        truncated,
        calls=200,
        warmup=20,
        on_gpu=(
            "fused",
            "eager trunc_normal_",
            "eager erfinv",
            "compile erfinv",
            "eager addressed",
        ),
    ),
    Case(
        f"class labels, {NUM} of {NUM_CLASSES}",
        "kernels",
        ("fused", "randint"),
        labels,
        calls=500,
        warmup=20,
        on_gpu=("fused", "randint"),
    ),
]
