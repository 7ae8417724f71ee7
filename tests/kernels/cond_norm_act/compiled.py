"""`cond_norm_act` compiled ahead of time from its real call sites: registers, spills and 128-bit accesses."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.cond_norm_act import triton_impl

CHANNELS = 128
NVIDIA = ("sm_80", "sm_100")


def image(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def launch(
    target: str, mode: str, dtype: torch.dtype, residual: bool = False, activation: str = "relu"
) -> inspection.Report:
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
    return inspection.inspect(only.kernel)


def check_registers_and_spills() -> None:
    for target in TARGETS:
        for mode in ("plain", "upsample", "phases"):
            report = launch(target, mode, torch.bfloat16, residual=True)
            assert report.spills == report.num_atomics == 0, report
            assert report.registers <= 48, report
    for target in ("sm_90", "gfx942"):
        for activation in ("tanh", "silu"):
            report = launch(target, "plain", torch.float32, activation=activation)
            assert report.spills == 0, report
            assert report.registers <= 64, report


def check_bytes_are_the_counted_minimum_in_128_bit_accesses() -> None:
    for target in NVIDIA:
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            for mode, writes in (("plain", 1), ("upsample", 4), ("phases", 1)):
                for residual in (False, True):
                    report = launch(target, mode, dtype, residual)
                    values = triton_impl.VALUES * size
                    # Scale and shift are 4-byte loads, one of each a thread: the channels of the tile.
                    narrow = report.load_widths.pop(4)
                    assert narrow == 2, report
                    reads = 1 + (writes if residual else 0)
                    assert set(report.load_widths) == set(report.store_widths) == {16}, report
                    assert report.bytes_loaded() == reads * values, report
                    assert report.bytes_stored() == writes * values, report


def check_accesses_on_amd() -> None:
    for dtype, width in ((torch.float32, 16), (torch.bfloat16, 8)):
        report = launch("gfx942", "upsample", dtype)
        assert set(report.store_widths) == {width}, report
        assert report.bytes_stored() == 4 * triton_impl.VALUES * dtype.itemsize
