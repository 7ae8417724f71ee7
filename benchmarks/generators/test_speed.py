"""Frozen generators as they come, compiled, and rewritten by `optimize`; each is compared with the original first.

pytest benchmarks/generators --benchmark-enable --benchmark-only
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn

from ptgm_fast import generators

CONTENDERS = ("optimized", "eager", "eager channels-last", "compile")
# Fewer rounds where one takes seconds.
ROUNDS = {"biggan-deep 128": 5}


def letters(num: int) -> tuple[Tensor, ...]:
    return torch.randn(num, 16), torch.randn(num, 32)


INPUTS: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "letters": letters,
    "biggan-deep 128": lambda num: (torch.randn(num, 128), torch.eye(1000)[:num], 0.4),
    "dcgan 64": lambda num: (torch.randn(num, 100), torch.eye(10)[torch.arange(num) % 10]),
}


@cache
def original(name: str) -> nn.Module:
    if name == "letters":
        return generators.load("letters")
    return {"biggan-deep 128": networks.biggan_deep, "dcgan 64": networks.dcgan}[name]()


@cache
def rewritten(name: str) -> generators.Optimized:
    return generators.optimize(original(name), example=INPUTS[name](2))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    torch.compiler.reset()


def build(kind: str, name: str) -> Callable[..., Tensor]:
    if kind == "optimized":
        return rewritten(name).module
    if kind == "eager":
        return original(name)
    laid_out = copy.deepcopy(original(name)).to(memory_format=torch.channels_last)
    return laid_out if kind == "eager channels-last" else torch.compile(laid_out, dynamic=False)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize(
    ("name", "num"),
    [("letters", 8), ("letters", 32), ("letters", 128), ("biggan-deep 128", 8), ("biggan-deep 128", 32), ("dcgan 64", 8), ("dcgan 64", 32)],
)  # fmt: skip
@torch.no_grad()
def test_images(benchmark: Any, threads: int, name: str, num: int, contender: str) -> None:
    """One batch of images, in a process with its own allocator: what large tensors cost a user is part of the time."""
    if threads == 1 and name == "biggan-deep 128":
        pytest.skip("two threads only: minutes a batch on one")
    benchmark.group = f"{name}, batch {num}, {threads} threads"
    torch.manual_seed(1)
    inputs = INPUTS[name](num)
    call = build(contender, name)
    found, expected = call(*inputs), original(name)(*inputs)
    benchmark.extra_info["difference"] = difference = (found - expected).abs().max().item()
    assert difference <= 1e-5, f"{contender} differs by {difference:.1e}"
    assert expected.std() > 0.01
    benchmark.pedantic(call, args=inputs, rounds=ROUNDS.get(name, 30), warmup_rounds=1)
