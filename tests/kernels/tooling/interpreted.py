"""The interpreter's tooling against kernels with known faults."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from helpers import memory_guard
from helpers.interpreter import NativeBfloat16Error


@triton.jit
def add_one(x_ptr, out_ptr, n, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i + SHIFT, mask=i < n) + 1, mask=i < n)


@triton.jit
def add_one_unmasked(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + 1)


@triton.jit
def subtract_mean_twice_read(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x_ptr + i, mask=i < n, other=0.0), 0)
    # The planted fault, a second pass: values already in registers are read again.
    again = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, again - total / n, mask=i < n)


@triton.jit
def write_every_second(x_ptr, stride, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x_ptr + i * stride, i.to(tl.float32), mask=i < n)


@triton.jit
def count_up(counter_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(counter_ptr + tl.arange(0, BLOCK), 1)


@triton.jit
def polynomial_bfloat16(x_ptr, out_ptr, CAST: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    if CAST:
        x = x.to(tl.float32)
    tl.store(out_ptr + i, (x + x * x).to(tl.bfloat16))


@triton.jit
def dot_bfloat16(a_ptr, b_ptr, out_ptr):
    i = tl.arange(0, 16)
    square = i[:, None] * 16 + i[None, :]
    tl.store(out_ptr + square, tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square)))


def check_counts_of_one_pass() -> None:
    x, out = torch.randn(100), torch.empty(100)
    with memory_guard.guard() as launches:
        add_one[(2,)](x, out, 100, SHIFT=0, BLOCK=64)
    assert torch.equal(out, x + 1)
    assert len(launches) == 1
    for name, reads, writes in (("x_ptr", 1, 0), ("out_ptr", 0, 1)):
        assert (launches[0][name].reads == reads).all()
        assert (launches[0][name].writes == writes).all()


def check_planted_second_pass_is_counted() -> None:
    with memory_guard.guard() as launches:
        subtract_mean_twice_read[(1,)](torch.randn(50), torch.empty(50), 50, BLOCK=64)
    assert (launches[0]["x_ptr"].reads == 2).all()


def check_planted_read_past_the_end() -> None:
    x, out = torch.randn(100), torch.empty(100)
    with (
        pytest.raises(
            InterpreterError,
            match=r"read out of bounds in program \(1, 0, 0\): 1 lanes.* x_ptr\[100\]",
        ),
        memory_guard.guard(),
    ):
        add_one[(2,)](x, out, 100, SHIFT=1, BLOCK=64)


def check_planted_missing_mask() -> None:
    with pytest.raises(InterpreterError, match="out of bounds"), memory_guard.guard():
        add_one_unmasked[(2,)](torch.randn(100), torch.empty(100), BLOCK=64)


def check_planted_write_into_the_gaps_of_a_view() -> None:
    # The addresses are inside the storage, but only the view's elements belong to the argument.
    columns = torch.zeros(10, 2)[:, 0]
    with memory_guard.guard() as launches:
        write_every_second[(1,)](columns, 2, 10, BLOCK=16)
    assert launches[0]["x_ptr"].writes.shape == (10,)
    assert (launches[0]["x_ptr"].writes == 1).all()
    with pytest.raises(InterpreterError, match="write out of bounds"), memory_guard.guard():
        write_every_second[(1,)](columns, 1, 10, BLOCK=16)


def check_atomics_are_counted() -> None:
    counter = torch.zeros(8, dtype=torch.int32)
    with memory_guard.guard() as launches:
        count_up[(3,)](counter, BLOCK=8)
    assert (counter == 3).all()
    assert (launches[0]["counter_ptr"].writes == 3).all()
    with pytest.raises(InterpreterError, match="out of bounds"), memory_guard.guard():
        count_up[(1,)](counter, BLOCK=16)


def check_the_guard_ends_with_its_block() -> None:
    buffer = torch.randn(128)
    with pytest.raises(InterpreterError), memory_guard.guard():
        add_one_unmasked[(1,)](buffer[:32], torch.empty(64), BLOCK=64)
    # The storage extends beyond the view, so this is harmless outside a guard.
    add_one_unmasked[(1,)](buffer[:32], torch.empty(64), BLOCK=64)


def check_bfloat16_rounds_as_torch_does() -> None:
    x = torch.randn(1024).to(torch.bfloat16)
    x[:4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    out = torch.empty_like(x)
    polynomial_bfloat16[(1,)](x, out, CAST=True, BLOCK=1024)
    expected = (x.float() + x.float() * x.float()).to(torch.bfloat16)
    assert torch.equal(out.view(torch.int16)[3:], expected.view(torch.int16)[3:])
    torch.testing.assert_close(out[:4], expected[:4], rtol=0, atol=0, equal_nan=True)


def check_bfloat16_arithmetic_is_refused() -> None:
    x = torch.randn(16).to(torch.bfloat16)
    with pytest.raises(InterpreterError, match=NativeBfloat16Error.__name__):
        polynomial_bfloat16[(1,)](x, torch.empty_like(x), CAST=False, BLOCK=16)


def check_bfloat16_dot() -> None:
    a, b = (torch.randn(16, 16).to(torch.bfloat16) for _ in range(2))
    out = torch.empty(16, 16)
    dot_bfloat16[(1,)](a, b, out)
    torch.testing.assert_close(out, a.float() @ b.float())
