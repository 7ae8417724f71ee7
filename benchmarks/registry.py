"""The cases of the throughput suites: their contenders, and the check that each contender must pass first.

`benchmarks/kernels` and `benchmarks/generators` time these cases; `tests/benchmarks` runs their checks without timing. Suites
with a bound instead of contenders (`engine`) or with whole trainings (`end_to_end`) define their own tests, but list their
contenders in `BY_ROLE`, too.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from result_file import Role

# The role of each contender, by its name in any suite. A peer is another project's implementation, or plain PyTorch; a floor
# does less than the case's work and is a lower bound.
BY_ROLE: dict[Role, tuple[str, ...]] = {
    "own": ("fused", "fused phases", "fused upsample", "fused, no autograd", "optimized", "thread", "inline", "ours",
            "ours, always ahead"),
    "peer": ("eager", "eager NCHW", "eager channels-last", "eager, old recipe", "eager channels-last, old recipe", "eager addressed", "eager erfinv", "eager trunc_normal_", "compile",
             "compile erfinv", "interpolate, fused", "randint", "scipy truncnorm", "kornia", "torchvision", "semilearn"),
    "floor": ("bytes", "sum alone"),
}  # fmt: skip
ROLES: dict[str, Role] = {name: role for role, names in BY_ROLE.items() for name in names}


def role_of(contender: str) -> Role:
    """The role of a contender. Raises KeyError for a name that is not in `BY_ROLE`."""
    if contender not in ROLES:
        raise KeyError(
            f"contender {contender!r} has no role: name it in benchmarks/registry.BY_ROLE"
        )
    return ROLES[contender]


@dataclass
class Work:
    """A case on one device: inputs made, contenders ready to be called.

    calls: by contender, its work. check(contender, result) raises AssertionError if the result is wrong.
    """

    calls: Mapping[str, Callable[[], Any]]
    check: Callable[[str, Any], None]
    passed: set[str] = field(default_factory=set)

    def checked(self, contender: str) -> Callable[[], Any]:
        """The contender's call, compared with the reference the first time. A floor's result is not compared."""
        call = self.calls[contender]
        if contender not in self.passed:
            result = call()
            if role_of(contender) != "floor":
                self.check(contender, result)
            self.passed.add(contender)
        return call


@dataclass(frozen=True)
class Case:
    """One comparison. The contenders, ours first, do the same work on the same inputs; floors do less.

    name: what is done, and the size. prepare: builds the work on a device, with inputs from a fixed seed. calls: timed calls
    per contender, over all rounds; warmup: calls before each round. on_gpu: the contenders that also run on a GPU. threads: on a
    CPU. images: how many images a call makes, if any. slow: takes seconds to prepare or to call.
    """

    name: str
    suite: str
    contenders: tuple[str, ...]
    prepare: Callable[[torch.device], Work]
    calls: int
    warmup: int
    on_gpu: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1, 2)
    images: int | None = None
    slow: bool = False

    def __repr__(self) -> str:
        return self.name

    def group(self, threads: int, device: torch.device) -> str:
        """The name of the case in the results."""
        return f"{self.name}, {f'{threads} threads' if device.type == 'cpu' else 'GPU'}"


@lru_cache(maxsize=1)
def ready(case: Case, threads: int, device: torch.device) -> Work:
    """The case's work, cached over its rounds: what was compiled or built is not built again.

    threads: torch's number of threads; code is compiled for it.
    """
    torch.compiler.reset()
    return case.prepare(device)


def all_cases(suite: str | None = None) -> list[Case]:
    """Every case, or those of one suite."""
    import cases

    found: list[Case] = []
    for module in pkgutil.iter_modules(cases.__path__):
        found += importlib.import_module(f"cases.{module.name}").CASES
    return [case for case in found if suite in (None, case.suite)]
