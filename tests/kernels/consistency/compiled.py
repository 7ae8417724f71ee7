"""`consistency` compiled ahead of time from its real call sites: registers, spills, accesses and their width."""

from __future__ import annotations

import torch
import triton
from triton.compiler import CompiledKernel

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.consistency import METHODS, triton_impl

NVIDIA = ("sm_80", "sm_90", "sm_100", "sm_120")
# A small head, ImageNet, and ImageNet-21k in blocks.
NUM, SMALL, IMAGENET, IN_BLOCKS = 64, 10, 1000, 21841
TRITON_3_6 = triton.__version__.startswith("3.6.")


def launch(
    target: str,
    method: str = "uda",
    classes: int = IMAGENET,
    dtype: torch.dtype = torch.float32,
    extras: bool = False,
) -> fake_driver.Launch:
    weak, strong = torch.empty(2, NUM, classes, dtype=dtype)
    weight, thresholds = (torch.empty(NUM), torch.empty(classes)) if extras else (None, None)
    with fake_driver.compiling(target) as launches:
        triton_impl.consistency(weak, strong, thresholds, weight, method, 0.4, 0.8, True, False)
    (only,) = launches
    return only


def scale(target: str, dtype: torch.dtype, classes: int = IMAGENET) -> CompiledKernel:
    gradient, counts = torch.empty(NUM, classes), torch.empty(NUM, dtype=torch.bool)
    # The gradient of a mean: one number for all rows.
    grad = torch.empty(1).expand(NUM)
    with fake_driver.compiling(target) as launches:
        triton_impl.scale(gradient, counts, grad, dtype)
    (only,) = launches
    return only.kernel


def check_registers_and_spills() -> None:
    for target in TARGETS:
        for method in METHODS:
            found = inspection.resources(launch(target, method, extras=True).kernel)
            assert found.spilled_bytes == found.num_atomics == 0, (method, found)
            assert found.registers <= 64, (method, found)
        for classes in (SMALL, triton_impl.MAX_TILE, IN_BLOCKS):
            kernel = launch(target, classes=classes, dtype=torch.bfloat16).kernel
            found = inspection.resources(kernel)
            if TRITON_3_6 and (target, classes) == ("sm_80", IN_BLOCKS):
                # Triton 3.6 spills two registers for the longest rows on sm_80.
                assert inspection.inspect(kernel).spills <= 2, (classes, found)
            else:
                assert found.spilled_bytes == 0, (classes, found)
            assert found.num_atomics == 0, (classes, found)
            assert found.registers <= 128, (classes, found)
        found = inspection.resources(scale(target, torch.bfloat16))
        assert found.spilled_bytes == 0, found
        assert found.registers <= 48, found


def check_bytes_of_1000_classes_are_the_minimum_in_128_bit_accesses() -> None:
    # Every method for one target; the others differ in their assembler alone.
    methods = [("sm_80", method, torch.float32) for method in METHODS]
    uda = [(target, "uda", torch.float32) for target in NVIDIA[1:]]
    halves = [(target, "uda", torch.bfloat16) for target in NVIDIA]
    for target, method, dtype in (*methods, *uda, *halves):
        only = launch(target, method, dtype=dtype)
        report = inspection.inspect(only.kernel)
        tile = only.arguments["ROWS"] * only.arguments["COLUMNS"]
        assert set(report.load_widths) == {16}, (method, report)
        # Each tile once, including the masked lanes of 1,000 of 1,024 columns.
        assert report.bytes_loaded() == 2 * dtype.itemsize * tile, (method, report)
        # The gradient in float32, plus a 4-byte loss and a 1-byte flag per row.
        assert set(report.store_widths) == {16, 4, 1}, (method, report)
        assert report.store_widths[4] == report.store_widths[1] == 1, (method, report)
        assert 16 * report.store_widths[16] * report.threads == 4 * tile, (method, report)


def check_bytes_of_the_backward_pass() -> None:
    halves = [(target, torch.bfloat16) for target in NVIDIA]
    for target, dtype in (("sm_80", torch.float32), *halves):
        report = inspection.inspect(scale(target, dtype))
        wide = 16 * report.load_widths[16] * report.threads
        assert wide == 4 * triton_impl.TILE, report
        assert report.bytes_stored() == dtype.itemsize * triton_impl.TILE, report
        assert set(report.store_widths) <= {8, 16}, report


def check_accesses_on_amd() -> None:
    only = launch("gfx942")
    report = inspection.inspect(only.kernel)
    tile = only.arguments["ROWS"] * only.arguments["COLUMNS"]
    assert set(report.load_widths) == {16}, report
    assert report.bytes_loaded() == 2 * 4 * tile, report


def check_blocks_of_long_rows_are_read_wide_where_rows_are_aligned() -> None:
    # 21,841 is odd, so its rows are unaligned. 21,848 is a multiple of 8.
    for target in ("sm_80", "sm_120"):
        report = inspection.inspect(launch(target, classes=21848).kernel)
        assert set(report.load_widths) == {16}, report


def check_sizes_of_one() -> None:
    """Triton takes an integer argument of 1 as a constant: a stride of 16 bytes, a single class."""
    for num, classes in ((1, 1), (3, 2), (4, 8), (4, 16)):
        weak, strong = torch.empty(2, num, classes, dtype=torch.bfloat16)
        thresholds, weight = torch.empty(classes), torch.empty(num)
        counts, one = torch.empty(num, dtype=torch.bool), torch.empty(()).expand(num)
        with fake_driver.compiling("sm_90"):
            for method in ("uda", "fixmatch", "mse"):
                options = (thresholds, weight, method, 0.4, 0.8)
                triton_impl.consistency(weak, strong, *options, True, True)
            triton_impl.scale(weak.float(), counts, one, torch.bfloat16)
