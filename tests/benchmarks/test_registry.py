"""The cases that the suites time: each contender's check passes, and would notice a wrong value."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from registry import ROLES, Case, Work, all_cases, role_of
from torch import Tensor

CPU = torch.device("cpu")
CASES = all_cases()
# Left to the suites, which check each contender before they time it: the network that takes a minute (its rewriting is tested in
# tests/generators), and larger batches of those that are checked here.
LEFT_TO_THE_SUITES = (
    *(f"biggan-deep 128, batch {num}" for num in (8, 32)),
    *(f"{name}, batch {num}" for name in ("letters", "dcgan 64") for num in (32, 128)),
)


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


def prepared(case: Case) -> Work:
    try:
        return case.prepare(CPU)
    except ModuleNotFoundError as error:
        pytest.skip(f"the extra `bench` brings {error.name}")


def is_compiled(contender: str) -> bool:
    return contender.startswith("compile")


def smallest_of_each_kind(cases: list[Case]) -> list[Case]:
    """The same function is compiled for each size: of the cases whose names differ in their numbers only, one."""

    def kind(case: Case) -> str:
        return re.sub(r"\d+", "", case.name)

    def size(case: Case) -> int:
        return math.prod(map(int, re.findall(r"\d+", case.name)))

    smallest: dict[str, Case] = {}
    for case in sorted(cases, key=size):
        smallest.setdefault(kind(case), case)
    return list(smallest.values())


def checked_here(*, compiled: bool) -> list[Any]:
    """The cases; slow ones, and the compiled contenders of all, marked as such."""
    assert {case.name for case in CASES}.issuperset(LEFT_TO_THE_SUITES)
    cases = [case for case in CASES if case.name not in LEFT_TO_THE_SUITES]
    if compiled:
        cases = smallest_of_each_kind([c for c in cases if any(map(is_compiled, c.contenders))])
    slow = pytest.mark.slow
    return [
        pytest.param(case, id=case.name, marks=[slow] if case.slow or compiled else [])
        for case in cases
    ]


def spoilt(result: Any) -> Any:
    """The same with one value wrong, in the last tensor of several."""
    if isinstance(result, tuple):
        return *result[:-1], spoilt(result[-1])
    copied = result.detach().clone()
    flat = copied.view(-1) if copied.is_contiguous() else copied.permute(0, 2, 3, 1).reshape(-1)
    if result.dtype == torch.bool:
        flat[0] = not flat[0]
    else:
        flat[0] = torch.nan if result.is_floating_point() else -1
    return flat.view(result.shape)


@pytest.mark.parametrize("case", checked_here(compiled=False))
def test_contenders_pass_their_check_which_sees_a_wrong_value(case: Case) -> None:
    work = prepared(case)
    assert work.calls.keys() == set(case.contenders)
    for contender in case.contenders:
        if is_compiled(contender):
            continue
        result = work.checked(contender)()
        if role_of(contender) == "floor":
            continue
        work.check(contender, result)
        with pytest.raises(AssertionError):
            work.check(contender, spoilt(result))


@pytest.mark.parametrize("case", checked_here(compiled=True))
def test_compiled_contenders_pass_their_check(case: Case) -> None:
    work = prepared(case)
    for contender in filter(is_compiled, case.contenders):
        work.checked(contender)
        assert contender in work.passed


def test_every_case_is_ours_first_against_a_peer() -> None:
    for case in CASES:
        roles = [role_of(contender) for contender in case.contenders]
        assert roles[0] == "own", case
        assert "peer" in roles, case
        assert len(set(case.contenders)) == len(roles), case
        on_gpu = [role_of(contender) for contender in case.on_gpu]
        assert not on_gpu or ("own" in on_gpu and "peer" in on_gpu), case
        assert set(case.on_gpu) <= set(case.contenders), case
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {case.suite for case in CASES} == {"kernels", "generators"}
    assert any(case.on_gpu for case in all_cases("kernels"))


def test_a_wrong_result_is_never_handed_out_for_timing() -> None:
    def check(contender: str, found: Tensor) -> None:
        assert found == 1

    right, wrong = torch.tensor(1), torch.tensor(2)
    work = Work({"fused": lambda: wrong, "eager": lambda: right, "bytes": lambda: wrong}, check)
    assert work.checked("eager")() == right
    assert work.checked("bytes")() == wrong
    for _ in range(2):
        with pytest.raises(AssertionError):
            work.checked("fused")


def test_a_contender_without_a_role_is_refused() -> None:
    assert "new one" not in ROLES
    with pytest.raises(KeyError, match=r"registry\.BY_ROLE"):
        role_of("new one")
