"""Frozen generators as they come, compiled, and rewritten by `optimize` (`benchmarks/cases/generators.py`).

In a process with its own allocator: what large tensors cost a user is part of the time.

pytest benchmarks/generators --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable

from registry import Case


def test_speed(run_case: Callable[[Case, str], None], case: Case, contender: str) -> None:
    run_case(case, contender)
