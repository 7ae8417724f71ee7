"""Fixtures: the C++ implementations with each instruction set that this processor supports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ptgm_fast.kernels import dispatch

SETS = ("portable", "avx2", "avx512")


def use(name: str) -> Iterator[None]:
    """Use this instruction set until resumed; skip if it or the extension is missing."""
    if reason := dispatch.extension_missing():
        pytest.skip(reason)
    from ptgm_fast import _C

    before = _C.isa()
    try:
        _C.use_isa(name)
    except ValueError as error:
        pytest.skip(str(error))
    yield
    _C.use_isa(before)


@pytest.fixture(params=SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set in use."""
    for _ in use(request.param):
        yield request.param


@pytest.fixture(params=["reference", "cpu"])
def impl(request: pytest.FixtureRequest) -> str:
    """The reference, and the C++ implementation with the processor's widest instruction set."""
    if request.param == "cpu" and (reason := dispatch.extension_missing()):
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=["reference", *SETS])
def impl_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the C++ implementation with each instruction set."""
    if request.param == "reference":
        yield "reference"
        return
    for _ in use(request.param):
        yield "cpu"
