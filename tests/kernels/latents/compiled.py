"""The Triton kernels of latents as the real calls compile them: no spills, wide stores, no fused multiply-adds."""

from __future__ import annotations

import torch

from helpers import fake_driver, inspection
from helpers.fake_driver import TARGETS
from ptgm_fast.kernels.latents import triton_impl

CPU = torch.device("cpu")
NUM, DIM = 256, 128


def _latents(
    target: str, dim: int, truncation: float | None, dtype: torch.dtype
) -> inspection.Report:
    with fake_driver.compiling(target) as launches:
        triton_impl.latents(NUM, dim, 2**64 - 1, 2**40, None, truncation, dtype, CPU)
    (launch,) = launches
    report = inspection.inspect(launch.kernel)
    assert report.spills == report.num_atomics == 0, report
    # Nothing is read, and every byte is written once.
    assert report.load_widths == {}, report
    assert report.bytes_stored(launch.grid[0]) == NUM * dim * dtype.itemsize, report
    return report


def check_latents() -> None:
    for target in TARGETS:
        for truncation in (None, 0.7):
            report = _latents(target, DIM, truncation, torch.float32)
            assert set(report.store_widths) == {16}, report
            assert report.registers <= 64, report


def check_a_dimension_that_16_does_not_divide() -> None:
    for target in ("sm_80", "sm_120", "gfx942"):
        assert set(_latents(target, 120, 0.7, torch.float32).store_widths) == {16}


def check_reduced_precision() -> None:
    for target in ("sm_80", "sm_120", "gfx942"):
        widths = set(_latents(target, DIM, None, torch.bfloat16).store_widths)
        # AMD's 64-wide wavefronts have half as many values per thread.
        assert widths == ({8} if target == "gfx942" else {16}), (target, widths)


def check_no_fused_multiply_add() -> None:
    # The contracted form rounds once where the reference rounds twice. Divisions and roots contain some of their own,
    # which the compiler of the target adds after this stage.
    with fake_driver.compiling("sm_90") as launches:
        triton_impl.latents(NUM, DIM, 1, 0, None, None, torch.float32, CPU)
    (launch,) = launches
    assert "mul" in launch.kernel.asm["ptx"]
    assert "fma" not in launch.kernel.asm["ptx"]
    assert not launch.kernel.metadata.enable_fp_fusion


def check_planted_fused_multiply_add() -> None:
    with fake_driver.compiling("sm_90") as launches:
        options = dict(triton_impl._OPTIONS)
        triton_impl._OPTIONS["enable_fp_fusion"] = True
        try:
            triton_impl.latents(NUM, DIM, 1, 0, None, None, torch.float32, CPU)
        finally:
            triton_impl._OPTIONS.update(options)
    assert "fma" in launches[0].kernel.asm["ptx"]


def check_one_build_for_all_seeds_and_rows() -> None:
    # A build per kind of number would mean recompiling during a training run.
    with fake_driver.compiling("sm_90") as launches:
        for seed, start in ((0, 1), (16, 2**40), (2**63 + 1, 5), (2**64 - 1, 2**62)):
            triton_impl.latents(NUM, DIM, seed, start, None, 0.7, torch.float32, CPU)
            triton_impl.class_labels(NUM, 10, seed, start, None, CPU)
    for name in ("random_kernel", "class_labels_kernel"):
        assert len({launch.kernel.hash for launch in launches if launch.name == name}) == 1


def check_labels() -> None:
    for target in TARGETS:
        with fake_driver.compiling(target) as launches:
            triton_impl.class_labels(NUM, 1000, 1, 0, None, CPU)
        (launch,) = launches
        report = inspection.inspect(launch.kernel)
        assert report.spills == 0
        assert report.registers <= 32, report
        assert report.load_widths == {}, report
        # One row per thread; AMD's blocks have twice the threads, half of which repeat the others' rows.
        threads = min(report.threads, triton_impl.BLOCK_ROWS)
        assert report.bytes_stored() == report.threads * 8
        assert threads * launch.grid[0] == NUM


def check_sizes_of_one() -> None:
    """Triton takes an integer argument of 1 as a constant: a single block or class."""
    cpu, counter = torch.device("cpu"), torch.zeros(1, dtype=torch.int64)
    with fake_driver.compiling("sm_90"):
        for num, dim in ((1, 1), (1, 4), (1, 5), (4, 1)):
            triton_impl.latents(num, dim, 1, 0, None, None, torch.float32, cpu)
            triton_impl.latents(num, dim, -1, 1, counter, 0.5, torch.bfloat16, cpu)
            triton_impl.uniforms(num, dim, 1, 1, None, cpu)
        for num, classes in ((1, 1), (5, 1), (1, 2)):
            triton_impl.class_labels(num, classes, 1, 2**40, None, cpu)
