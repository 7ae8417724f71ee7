"""Frozen generators in their original form, compiled, and rewritten by `optimize`: one batch of images, float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import networks
import torch
from registry import Case, Work
from torch import Tensor, nn

from ptgm_fast import generators

CONTENDERS = ("optimized", "eager", "eager channels-last", "compile")
# The batch sizes of each; 128 would take half a minute per call with BigGAN.
BATCHES = {"letters": (8, 32, 128), "biggan-deep 128": (8, 32), "dcgan 64": (8, 32, 128)}
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "letters": lambda: generators.load("letters"),
    "biggan-deep 128": networks.biggan_deep,
    "dcgan 64": networks.dcgan,
}


def inputs(name: str, num: int, device: torch.device) -> tuple[Any, ...]:
    if name == "letters":
        return torch.randn(num, 16).to(device), torch.randn(num, 32).to(device)
    if name == "dcgan 64":
        one_hot = torch.eye(10)[torch.arange(num) % 10]
        return torch.randn(num, 100).to(device), one_hot.to(device)
    return torch.randn(num, 128).to(device), torch.eye(1000)[:num].to(device), 0.4


@cache
def original(name: str, device: torch.device) -> nn.Module:
    return BUILDERS[name]().to(device)


@cache
def rewritten(name: str, device: torch.device) -> nn.Module:
    example = inputs(name, 2, device)
    return generators.optimize(original(name, device), example=example).module


def work(name: str, num: int, device: torch.device) -> Work:
    """The time includes what large tensors cost a user: the process runs with its default allocator."""
    torch.manual_seed(1)
    given = inputs(name, num, device)
    eager = original(name, device)

    @cache
    def laid_out() -> nn.Module:
        return copy.deepcopy(eager).to(memory_format=torch.channels_last)

    @cache
    def compiled() -> Callable[..., Tensor]:
        return torch.compile(laid_out(), dynamic=False)

    @cache
    def expected() -> Tensor:
        return run(lambda: eager)

    @torch.no_grad()
    def run(network: Callable[[], Callable[..., Tensor]]) -> Tensor:
        return network()(*given)

    def check(contender: str, found: Tensor) -> None:
        difference = (found - expected()).abs().max().item()
        assert difference <= 1e-5, f"{contender} differs by {difference:.1e}"
        assert expected().std() > 0.01

    calls = {
        "optimized": partial(run, partial(rewritten, name, device)),
        "eager": partial(run, lambda: eager),
        "eager channels-last": partial(run, laid_out),
        "compile": partial(run, compiled),
    }
    return Work(calls, check)


CASES = [
    Case(
        f"{name}, batch {num}",
        "generators",
        CONTENDERS,
        partial(work, name, num),
        # Three calls where one takes seconds.
        calls=3 if name == "biggan-deep 128" else 30 if num < 128 else 15,
        warmup=0 if name == "biggan-deep 128" else 1,
        on_gpu=CONTENDERS,
        # On one thread BigGAN takes minutes per batch.
        threads=(2,) if name == "biggan-deep 128" else (1, 2),
        images=num,
        slow=name == "biggan-deep 128",
    )
    for name, batches in BATCHES.items()
    for num in batches
]
