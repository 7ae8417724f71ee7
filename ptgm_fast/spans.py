"""Instrumentation hooks: named, nested phases (spans) and named quantities (counters), passed in by the caller."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Spans(Protocol):
    """Times named, nested phases. `profiling` implements it; the layers below only call it."""

    def __call__(self, name: str) -> AbstractContextManager[None]: ...


Counter = Callable[[str, float], None]


def no_counter(name: str, value: float) -> None:
    return None


_NOTHING: AbstractContextManager[None] = nullcontext()


def no_spans(name: str) -> AbstractContextManager[None]:
    """Spans that measure nothing and cost one function call."""
    return _NOTHING
