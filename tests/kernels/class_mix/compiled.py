"""The Triton kernel of class_mix as the real calls compile it."""

from __future__ import annotations

import torch

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.class_mix import triton_impl


def _compile(target: str, num_classes: int, dim: int, dtype: torch.dtype, top_k: int | None = None):
    logits = torch.randn(256, num_classes).to(dtype)
    embedding = torch.randn(num_classes, dim).to(dtype)
    with fake_driver.compiling(target) as launches:
        triton_impl.class_mix(logits, embedding, 0.7, top_k)
    (launch,) = launches
    return launch, inspection.inspect(launch.kernel)


def check_no_spills_and_wide_accesses() -> None:
    # A class count that 16 does not divide, but 8 does, which is enough for 128-bit words.
    for target in TARGETS:
        for dtype in (torch.float32, torch.bfloat16):
            launch, report = _compile(target, 1000, 128, dtype)
            assert launch.arguments["UNIT"] == 8
            assert report.spills == report.num_atomics == 0, report
            assert report.registers <= 128, report
            assert report.shared_bytes <= 48 * 1024, report
            # A tile of logits may be too small to give every thread 16 bytes.
            assert min(report.load_widths) >= 4, report
            assert max(report.load_widths) == 16, report
            # AMD's 256 threads have four values each of half a tile: 64 bits of bfloat16.
            narrow = target == "gfx942" and dtype == torch.bfloat16
            assert set(report.store_widths) == {8 if narrow else 16}, report
            assert report.bytes_stored(launch.grid[0]) == 256 * 128 * dtype.itemsize, report


def check_odd_sizes_compile() -> None:
    for target in ("sm_80", "gfx942"):
        _, report = _compile(target, 21841, 20, torch.float32, top_k=5)
        assert report.spills == 0, report
        assert report.registers <= 128, report


def check_bytes_of_one_pass() -> None:
    # A tile's bytes: the copies of one turn of the pipelined loop are the loads without its prologue.
    for dtype in (torch.float32, torch.bfloat16):
        launch, report = _compile("sm_90", 1000, 128, dtype)
        rows, classes = triton_impl.BLOCK_ROWS, triton_impl.BLOCK_CLASSES
        tile = (rows * classes + classes * 128) * dtype.itemsize
        stages = inspection.num_operations(launch.kernel, "ttg.async_copy_global_to_local") // 2
        assert stages >= 2
        assert report.bytes_loaded() == stages * tile, (report, stages)


def check_sizes_of_one() -> None:
    """Triton takes an integer argument of 1 as a constant: a stride of 16 bytes, a single class or column."""
    for num, classes, dim in ((1, 1, 1), (3, 2, 1), (3, 1, 16), (4, 16, 128)):
        with fake_driver.compiling("sm_90"):
            for top_k in (None, 1):
                triton_impl.class_mix(
                    torch.empty(num, classes), torch.empty(classes, dim), 1.0, top_k
                )
