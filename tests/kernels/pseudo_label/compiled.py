"""`pseudo_label` compiled ahead of time from its real call sites: registers, spills, accesses and their width."""

from __future__ import annotations

import torch
from triton.compiler import CompiledKernel

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.pseudo_label import triton_impl

NVIDIA = ("sm_80", "sm_90", "sm_100", "sm_120")
# A small head, ImageNet, and ImageNet-21k.
CLASSES = (10, 1000, 21841)


def launch(
    target: str, classes: int = 1000, dtype: torch.dtype = torch.float32
) -> tuple[CompiledKernel, int]:
    """The kernel, and the number of logits per program step."""
    with fake_driver.compiling(target) as launches:
        triton_impl.pseudo_label(torch.empty(64, classes, dtype=dtype), 0.7, 0.5)
    (only,) = launches
    tile = only.arguments["ROWS"] * only.arguments["BLOCK"]
    return only.kernel, tile


def check_registers_and_spills() -> None:
    for target in TARGETS:
        # Halves become float32 where they are loaded.
        forms = [(classes, torch.float32) for classes in CLASSES] + [(1000, torch.bfloat16)]
        for classes, dtype in forms:
            found = inspection.resources(launch(target, classes, dtype)[0])
            assert found.spilled_bytes == found.num_atomics == 0, (classes, found)
            assert found.registers <= 96, (classes, found)


def check_bytes_of_1000_classes_are_the_minimum_in_128_bit_accesses() -> None:
    for target in NVIDIA:
        for dtype in (torch.float32, torch.bfloat16):
            kernel, tile = launch(target, dtype=dtype)
            report = inspection.inspect(kernel)
            assert set(report.load_widths) == {16}, report
            assert report.bytes_loaded() == dtype.itemsize * tile, report
            # Per row: a label of 8 bytes, a confidence of 4 and a flag of 1.
            assert report.store_widths == {8: 1, 4: 1, 1: 1}, report


def check_accesses_on_amd() -> None:
    kernel, tile = launch("gfx942")
    report = inspection.inspect(kernel)
    assert set(report.load_widths) == {16}, report
    assert report.bytes_loaded() == 4 * tile, report


def check_sizes_of_one() -> None:
    """Triton takes an integer argument of 1 as a constant: a stride of 16 bytes, a single class."""
    for classes in (1, 2, 4, 8, 16):
        launch("sm_90", classes)
