"""The Triton kernels of latents under the interpreter: the reference's bits, and every element written once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import memory_guard
from ptgm_fast import kernels
from ptgm_fast.kernels.latents import triton_impl

# num, dim, seed, start: one program, several, rows cut inside a block of four, 64-bit seeds and rows.
CASES = [
    (1, 1, 0, 0),
    (3, 4, 1, 7),
    (40, 30, 2**64 - 1, 2**63 - 40),
    (5, 131, 2**63, 2**32 - 2),
    (300, 8, 12345678901234567, 2**40),
]


def _both(name: str, *args: int, **options: object) -> tuple[Tensor, Tensor]:
    op = getattr(kernels, name)
    return op(*args, **options, impl="triton"), op(*args, **options, impl="reference")


def check_latents_have_the_bits_of_the_reference() -> None:
    for num, dim, seed, start in CASES:
        for truncation in (None, 0.7):
            options = {"seed": seed, "start": start, "truncation": truncation}
            assert torch.equal(*_both("latents", num, dim, **options)), (num, dim, truncation)


def check_reduced_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for dim in (16, 7):
            assert torch.equal(*_both("latents", 9, dim, seed=3, dtype=dtype))


def check_the_tail() -> None:
    # Enough numbers that some lie beyond 4; the centre's polynomial is far off there.
    fused, reference = _both("latents", 512, 256, seed=11)
    assert reference.abs().max() > 4
    assert torch.equal(fused, reference)


def check_uniforms_and_labels() -> None:
    for num, dim, seed, start in CASES:
        assert torch.equal(*_both("uniforms", num, dim, seed=seed, start=start))
        for num_classes in (1, 2, 1000, 2**31 - 1):
            assert torch.equal(*_both("class_labels", num, num_classes, seed=seed, start=start))


def check_a_start_in_memory() -> None:
    start = torch.tensor(2**33 + 5)
    for name, size in (("latents", 6), ("uniforms", 6), ("class_labels", 10)):
        op = getattr(kernels, name)
        fused = op(20, size, seed=1, start=start, impl="triton")
        assert torch.equal(fused, op(20, size, seed=1, start=int(start)))


def check_empty() -> None:
    with memory_guard.guard() as launches:
        assert kernels.latents(0, 5, seed=1, impl="triton").shape == (0, 5)
        assert kernels.latents(5, 0, seed=1, impl="triton").shape == (5, 0)
        assert kernels.class_labels(0, 5, seed=1, impl="triton").shape == (0,)
    assert launches == []


def check_every_element_is_written_once() -> None:
    start = torch.tensor([3])
    for num, dim, _, _ in CASES:
        with memory_guard.guard() as launches:
            kernels.latents(num, dim, seed=1, start=start, impl="triton")
            kernels.uniforms(num, dim, seed=1, start=start, impl="triton")
            kernels.class_labels(num, 10, seed=1, start=start, impl="triton")
        assert len(launches) == 3
        for launch in launches:
            assert (launch["out_ptr"].writes == 1).all()
            assert (launch["out_ptr"].reads == 0).all()
            # Each program reads it once.
            assert launch["counter_ptr"].reads.item() >= 1
            assert launch["counter_ptr"].writes.item() == 0


def check_a_wrong_length_is_caught() -> None:
    # The guard on the kernel itself: if the kernel is told there is one row too many, the guard must notice.
    with pytest.raises(Exception, match="write out of bounds"), memory_guard.guard():
        triton_impl.random_kernel[(1,)](
            torch.empty(3, 8),
            None,
            1,
            0,
            0.0,
            4 * 2,
            2,
            8,
            NORMAL=False,
            TRUNCATED=False,
            WHOLE=True,
            STREAM=0,
            BLOCK=256,
        )
