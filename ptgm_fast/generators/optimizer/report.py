"""What a rewrite did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PassReport:
    """One pass: how often it matched, multiply-adds and bytes moved an image, before and after."""

    name: str
    matched: int
    multiply_adds: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Optimized:
    """A rewritten module and what was done.

    module: equal to the original and cheaper. passes: in the order they ran; sums over the parts where the whole could
    not be traced. difference: the largest that was found, relative to max(1, |original|); None without `verify`.
    fixed: inputs that became constants. left: why the whole module has no graph; None if it has one. parts: the
    submodules that were rewritten in its stead.
    """

    module: nn.Module
    passes: tuple[PassReport, ...]
    difference: float | None
    fixed: tuple[Any, ...] = ()
    left: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """An image's, before and after all passes; (0, 0) where nothing was traced."""
        if not self.passes:
            return 0, 0
        return self.passes[0].multiply_adds[0], self.passes[-1].multiply_adds[1]


def added(reports: list[tuple[PassReport, ...]]) -> tuple[PassReport, ...]:
    """The reports of several parts as one."""

    def total(pairs: list[tuple[int, int]]) -> tuple[int, int]:
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    return tuple(
        PassReport(
            rows[0].name,
            sum(r.matched for r in rows),
            total([r.multiply_adds for r in rows]),
            total([r.bytes for r in rows]),
        )
        for rows in zip(*reports, strict=True)
    )
