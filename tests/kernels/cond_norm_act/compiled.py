"""`cond_norm_act` compiled ahead of time from its real call sites: registers, spills and 128-bit accesses."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.compiler import CompiledKernel

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.cond_norm_act import triton_impl

CHANNELS = 128


def image(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def launch(
    target: str, mode: str, dtype: torch.dtype, residual: bool = False, activation: str = "relu"
) -> CompiledKernel:
    sizes = {
        "plain": (CHANNELS, 32, 32),
        "upsample": (CHANNELS, 16, 16),
        "phases": (4 * CHANNELS, 17, 17),
    }
    x, affine = image((2, *sizes[mode]), dtype), torch.empty(2, CHANNELS)
    added = image((2, CHANNELS, 32, 32), dtype) if residual else None
    with fake_driver.compiling(target) as launches:
        triton_impl.cond_norm_act(
            x, affine, affine, added, activation, mode == "upsample", mode == "phases"
        )
    (only,) = launches
    return only.kernel


def check_registers_and_spills() -> None:
    for target in TARGETS:
        for mode in ("plain", "upsample", "phases"):
            found = inspection.resources(launch(target, mode, torch.bfloat16, residual=True))
            assert found.spilled_bytes == found.num_atomics == 0, found
            assert found.registers <= 48, found
    for target in ("sm_90", "gfx942"):
        for activation in ("tanh", "silu"):
            kernel = launch(target, "plain", torch.float32, activation=activation)
            found = inspection.resources(kernel)
            assert found.spilled_bytes == 0, found
            assert found.registers <= 64, found


def check_bytes_are_the_counted_minimum_in_128_bit_accesses() -> None:
    # The same code for the newer target, by its other assembler: the form that moves most.
    forms = [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True), (torch.float32, False)]  # fmt: skip
    for target, some in (("sm_80", forms), ("sm_100", forms[:1])):
        for dtype, residual in some:
            for mode, writes in (("plain", 1), ("upsample", 4), ("phases", 1)):
                report = inspection.inspect(launch(target, mode, dtype, residual))
                values = triton_impl.VALUES * dtype.itemsize
                # Scale and shift are 4-byte loads, one of each per thread: the channels of the tile.
                narrow = report.load_widths.pop(4)
                assert narrow == 2, report
                reads = 1 + (writes if residual else 0)
                assert set(report.load_widths) == set(report.store_widths) == {16}, report
                assert report.bytes_loaded() == reads * values, report
                assert report.bytes_stored() == writes * values, report


def check_accesses_on_amd() -> None:
    for dtype, width in ((torch.float32, 16), (torch.bfloat16, 8)):
        report = inspection.inspect(launch("gfx942", "upsample", dtype))
        assert set(report.store_widths) == {width}, report
        assert report.bytes_stored() == 4 * triton_impl.VALUES * dtype.itemsize


def check_sizes_of_one() -> None:
    """Triton takes an integer argument of 1 as a constant: a single channel, row or column."""
    for channels, height, width in ((1, 1, 1), (3, 1, 1), (4, 8, 1), (1, 8, 8)):
        affine = torch.empty(2, channels)
        x = image((2, channels, height, width), torch.float32)
        added = image((2, channels, 2 * height, 2 * width), torch.float32)
        with fake_driver.compiling("sm_90"):
            for up, residual in ((False, None), (False, x), (True, added)):
                triton_impl.cond_norm_act(x, affine, affine, residual, "silu", up, False)
        phases = image((2, 4 * channels, height + 1, width + 1), torch.float32)
        with fake_driver.compiling("sm_90"):
            triton_impl.cond_norm_act(phases, affine, affine, None, "relu", False, True)


def check_more_images_than_an_axis_holds() -> None:
    """CUDA grids are limited to 65,535 programs on all axes but the first."""
    num = 70_000
    x, affine = torch.empty(num, 1, 1, 2), torch.empty(1)
    with fake_driver.compiling("sm_90") as launches:
        triton_impl.cond_norm_act(x, affine, affine, None, "relu", False, False)
    (only,) = launches
    assert only.grid == (num, 1, 1)
