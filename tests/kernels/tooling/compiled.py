"""The compile inspection and the fake driver against kernels whose counts are known."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS

BLOCK = 2048


@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n).to(tl.float32)
    y = tl.load(y_ptr + i, mask=i < n).to(tl.float32)
    tl.store(out_ptr + i, (x + y).to(out_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def add_in_two_passes(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n).to(tl.float32)
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=i < n)
    # The planted fault, a second pass: the first result goes through memory.
    tl.debug_barrier()
    x = tl.load(out_ptr + i, mask=i < n).to(tl.float32)
    y = tl.load(y_ptr + i, mask=i < n).to(tl.float32)
    tl.store(out_ptr + i, (x + y).to(out_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def count_up(counter_ptr, BLOCK: tl.constexpr):
    tl.atomic_add(counter_ptr + tl.arange(0, BLOCK), 1)


@triton.jit
def all_at_once(x_ptr, out_ptr, BLOCK: tl.constexpr):
    # Every value is needed until the total is known.
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x - tl.sum(x, 0))


def _add(
    target: str,
    fn=add,
    pointer: str = "*bf16",
    divisible: tuple[str, ...] = ("x_ptr", "y_ptr", "out_ptr", "n"),
):
    signature = {"x_ptr": pointer, "y_ptr": pointer, "out_ptr": pointer, "n": "i32"}
    return inspection.inspect(inspection.build(fn, signature, {"BLOCK": BLOCK}, target, divisible))


def check_minimum_of_bytes_on_every_target() -> None:
    for target in TARGETS:
        report = _add(target)
        assert report.target == target
        assert report.bytes_loaded() == 2 * 2 * BLOCK, report
        assert report.bytes_stored() == 2 * BLOCK, report
        assert set(report.load_widths) == set(report.store_widths) == {16}, report
        assert report.spills == report.num_atomics == report.shared_bytes == 0
        assert 8 <= report.registers <= 64, report


def check_planted_second_pass_shows() -> None:
    for target in ("sm_90", "gfx942"):
        report = _add(target, add_in_two_passes)
        assert report.bytes_loaded() == 3 * 2 * BLOCK, report
        assert report.bytes_stored() == 2 * 2 * BLOCK, report


def check_planted_scalar_accesses_show() -> None:
    # A length that is not known to be a multiple of 16 makes the masked accesses scalar.
    report = _add("sm_90", pointer="*fp32", divisible=("x_ptr", "y_ptr", "out_ptr"))
    assert set(report.load_widths) == {4}, report
    assert report.bytes_loaded() == 2 * 4 * BLOCK


def check_planted_spills_show() -> None:
    # 64 values per thread do not fit into 32 registers.
    signature = {"x_ptr": "*fp32", "out_ptr": "*fp32"}
    for limit, spills in ((None, False), (32, True)):
        kernel = inspection.build(
            all_at_once,
            signature,
            {"BLOCK": BLOCK},
            "sm_90",
            ("x_ptr", "out_ptr"),
            1,
            maxnreg=limit,
        )
        assert (inspection.inspect(kernel).spills > 0) == spills
        assert (inspection.resources(kernel).spilled_bytes > 0) == spills


def check_atomics_show() -> None:
    for target in ("sm_90", "gfx942"):
        kernel = inspection.build(count_up, {"counter_ptr": "*i32"}, {"BLOCK": BLOCK}, target)
        assert inspection.inspect(kernel).num_atomics > 0
        assert inspection.resources(kernel).num_atomics > 0


def check_operations_in_the_intermediate_code() -> None:
    signature = dict.fromkeys(("x_ptr", "y_ptr", "out_ptr"), "*fp32") | {"n": "i32"}
    kernel = inspection.build(add_in_two_passes, signature, {"BLOCK": BLOCK}, "sm_90")
    assert inspection.num_operations(kernel, "tt.load") == 3
    assert inspection.num_operations(kernel, "tt.store") == 2
    assert inspection.num_instructions(kernel, "FADD") == BLOCK // 128


def check_real_calls_are_specialised() -> None:
    x = torch.randn(BLOCK * 3)
    for target in ("sm_80", "sm_120", "gfx942"):
        with fake_driver.compiling(target) as launches:
            add[(3,)](x, x, torch.empty_like(x), x.numel(), BLOCK=BLOCK)
            grid = lambda meta: (3 * BLOCK // meta["BLOCK"],)  # noqa: E731
            add[grid](x[1:], x, torch.empty_like(x), x.numel() - 1, BLOCK=BLOCK)
        aligned, shifted = (inspection.inspect(launch.kernel) for launch in launches)
        assert [launch.name for launch in launches] == ["add", "add"]
        assert [launch.grid for launch in launches] == [(3, 1, 1), (3, 1, 1)]
        assert launches[0].arguments["BLOCK"] == BLOCK
        assert set(aligned.load_widths) == {16}
        assert 4 in shifted.load_widths
        assert aligned.bytes_loaded(3) == 2 * 4 * x.numel()
