"""The cases that the suites time: each contender's check passes, and would notice a wrong value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from registry import ROLES, Case, Work, all_cases, role_of
from torch import Tensor

CPU = torch.device("cpu")
CASES = all_cases()
# Minutes each: the same networks in a larger batch, whose own check runs before they are timed.
TOO_SLOW = ("biggan-deep 128, batch 32",)


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


def by_speed(*, compiled: bool) -> list[Any]:
    """The cases; slow ones, and the compiled contenders of all, marked as such."""
    slow = pytest.mark.slow
    return [
        pytest.param(case, id=case.name, marks=[slow] if case.slow or compiled else [])
        for case in CASES
        if case.name not in TOO_SLOW and (not compiled or any(map(is_compiled, case.contenders)))
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


@pytest.mark.parametrize("case", by_speed(compiled=False))
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


@pytest.mark.parametrize("case", by_speed(compiled=True))
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
