"""`latents` truncated at 2 against scipy, eager PyTorch and torch.compile.

pytest benchmarks/kernels/test_latents.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from ptgm_fast.kernels import class_labels, latents
from ptgm_fast.kernels.latents import reference

NUM, DIM = 256, 128
TRUNCATION = 0.5
MASS = math.erf(math.sqrt(2))
LAW = stats.truncnorm(-2, 2, scale=TRUNCATION)
OUT = torch.empty(NUM, DIM)


def by_inverse() -> Tensor:
    """PyTorch's own way to the same law: a stateful uniform draw through erfinv."""
    u = torch.rand(NUM, DIM) * (2 * MASS) - MASS
    return (torch.erfinv(u) * math.sqrt(2)).clamp(-2, 2) * TRUNCATION


def addressed() -> Tensor:
    """The reference: the numbers of the fused op, operation by operation."""
    return reference.latents(NUM, DIM, 1, 0, None, TRUNCATION, torch.float32, torch.device("cpu"))


# Those without "addressed" draw from a generator's state: less than the op gives, but what one would write. The compiled
# reference is no contender: inductor's C++ for its ten rounds was still compiling after nine minutes.
CONTENDERS: dict[str, Callable[[], Any]] = {
    "fused": lambda: latents(NUM, DIM, seed=1, truncation=TRUNCATION),
    "scipy truncnorm": lambda: torch.from_numpy(LAW.rvs((NUM, DIM))),
    "eager trunc_normal_": lambda: torch.nn.init.trunc_normal_(OUT, std=TRUNCATION, a=-1.0, b=1.0),
    "eager erfinv": by_inverse,
    "compile erfinv": torch.compile(by_inverse),
    "eager addressed": addressed,
}


@pytest.mark.parametrize("contender", CONTENDERS)
def test_truncated(benchmark: Any, threads: int, contender: str) -> None:
    """Truncated normal numbers, 256 x 128."""
    benchmark.group = f"latents truncated, {NUM}x{DIM}, {threads} threads"
    call = CONTENDERS[contender]
    if contender == "fused":
        assert torch.equal(call(), addressed())
    z = call().double()
    assert z.abs().max() <= 2 * TRUNCATION
    # Six standard errors of the variance.
    assert abs(z.var().item() / LAW.var() - 1) < 6 * math.sqrt(2 / z.numel())
    benchmark.pedantic(call, rounds=200, warmup_rounds=20)


@pytest.mark.parametrize("contender", ["fused", "randint"])
def test_labels(benchmark: Any, threads: int, contender: str) -> None:
    """Class labels of a batch: the cost of a call."""
    benchmark.group = f"class labels, 256 of 1000, {threads} threads"
    calls: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: class_labels(256, 1000, seed=1),
        "randint": lambda: torch.randint(1000, (256,)),
    }
    labels = calls[contender]()
    assert labels.min() >= 0
    assert labels.max() < 1000
    benchmark.pedantic(calls[contender], rounds=500, warmup_rounds=20)
