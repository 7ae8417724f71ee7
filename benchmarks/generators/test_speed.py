"""Frozen generators in their original form, compiled, and rewritten by `optimize` (`benchmarks/cases/generators.py`).

They run with the default allocator: the time includes what large tensors cost a user.

pytest benchmarks/generators --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable

from registry import Case


def test_speed(run_case: Callable[[Case, str], None], case: Case, contender: str) -> None:
    run_case(case, contender)
