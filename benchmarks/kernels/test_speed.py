"""The ops against their peers, case by case (`benchmarks/cases`). Each contender is checked first.

pytest benchmarks/kernels --benchmark-enable --benchmark-only -k views
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from registry import Case

pytestmark = pytest.mark.usefixtures("kept_memory")


def test_speed(run_case: Callable[[Case, str], None], case: Case, contender: str) -> None:
    run_case(case, contender)
