"""`views` compiled ahead of time from its real call sites: registers, spills and the accesses of the machine code."""

from __future__ import annotations

import torch
from triton.compiler import CompiledKernel

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.views import triton_impl, view_preset
from ptgm_fast.kernels.views.parameters import ranges
from ptgm_fast.kernels.views.parameters import triton_impl as parameters_impl

DTYPES = {torch.float32: 4, torch.bfloat16: 2, torch.uint8: 1}
# Parameters that each view loads, the same address in every lane.
NUM_READ = {1: 14, 3: 24}


def launch(
    target: str,
    channels: int,
    source: torch.dtype,
    dtype: torch.dtype,
    two: bool,
    side: int = 32,
) -> CompiledKernel:
    """Views of 32x32; images with another side are enlarged by the kernel."""
    images = torch.empty(2, channels, side, side, dtype=source)
    packed = torch.empty(2, 24)
    statistics = [0.5] * channels
    with fake_driver.compiling(target) as launches:
        strong = packed if two else None
        triton_impl.views(images, packed, strong, statistics, statistics, dtype, (32, 32))
    (only,) = launches
    assert only.grid == (2, 32 * 32 // triton_impl.BLOCK, 1)
    return only.kernel


def check_registers_and_spills() -> None:
    for target in TARGETS:
        for channels in (1, 3):
            for side in (32, 20):
                kernel = launch(target, channels, torch.float32, torch.float32, True, side)
                found = inspection.resources(kernel)
                assert found.spilled_bytes == found.num_atomics == found.shared_bytes == 0, found
                assert found.registers <= 64, found


def check_bytes_are_the_counted_minimum() -> None:
    # Four taps and one store per channel of each view and pixel: nothing is read or written twice. (On AMD, parameters are
    # read as scalars, so the vector loads there are only the taps.)
    pixels = triton_impl.BLOCK
    every_form = [
        (channels, *dtypes, *form)
        for channels in (1, 3)
        for dtypes in ((torch.float32, torch.float32), (torch.uint8, torch.bfloat16))
        for form in ((1, 32), (2, 32), (2, 20))
    ]
    # The same code for the newest target, by its other assembler.
    for target, forms in (("sm_80", every_form), ("sm_120", every_form[-3:])):
        for channels, source, dtype, views, side in forms:
            report = inspection.inspect(launch(target, channels, source, dtype, views == 2, side))
            parameters = report.threads * views * NUM_READ[channels] * 4
            taps = pixels * views * channels * 4 * DTYPES[source]
            assert report.bytes_loaded() == taps + parameters, report
            assert report.bytes_stored() == pixels * views * channels * DTYPES[dtype]


def check_grey_stores_are_whole_words() -> None:
    # Two neighboring pixels per thread; the three channels of a colour pixel are stored one by one.
    for channels, source, dtype, widths in (
        (1, torch.float32, torch.float32, {8: 2}),
        (1, torch.uint8, torch.bfloat16, {4: 2}),
        (3, torch.float32, torch.float32, {4: 12}),
    ):
        kernel = launch("sm_90", channels, source, dtype, two=True)
        assert inspection.inspect(kernel).store_widths == widths


def check_parameters_kernel() -> None:
    for target in TARGETS:
        for channels in (1, 3):
            spec_ranges = ranges(view_preset("rand-augment"), channels)
            with fake_driver.compiling(target) as launches:
                parameters_impl.view_parameters(
                    torch.empty(128, 48)[:, 24:], spec_ranges, channels, 32, 32
                )
            found = inspection.resources(launches[0].kernel)
            assert found.spilled_bytes == found.num_atomics == 0, found
            assert found.registers <= 64, found


def check_sizes_of_one() -> None:
    """Triton takes an integer argument of 1 as a constant: a single row, column or image."""
    for num, channels, height, width in ((1, 1, 1, 1), (2, 3, 1, 8), (2, 3, 8, 1)):
        images, numbers = torch.empty(num, channels, height, width), torch.empty(num, 24)
        statistics, spec = [0.5] * channels, ranges(view_preset("strong"), channels)
        with fake_driver.compiling("sm_90"):
            packed = triton_impl.view_parameters(numbers, spec, channels, height, width)
            for strong, size in (
                (None, (height, width)),
                (packed, (height, width)),
                (packed, (8, 9)),
                (packed, (8, 8)),
            ):
                triton_impl.views(
                    images, packed, strong, statistics, statistics, torch.float32, size
                )


def check_more_images_than_an_axis_holds() -> None:
    """CUDA grids are limited to 65,535 programs on all axes but the first."""
    num = 70_000
    images, packed = torch.empty(1, 1, 8, 8).expand(num, 1, 8, 8), torch.empty(num, 24)
    with fake_driver.compiling("sm_90") as launches:
        triton_impl.views(images, packed, None, [0.5], [0.5], torch.float32, (8, 8))
    (only,) = launches
    assert only.grid == (num, 1, 1)
