"""The Triton kernel of class_mix under the interpreter."""

from __future__ import annotations

import pytest
import torch
import triton

from helpers import memory_guard
from ptgm_fast.kernels import class_mix
from ptgm_fast.kernels.class_mix import triton_impl

CASES = [(1, 1, 1), (5, 2, 3), (17, 70, 33), (16, 33, 130), (33, 64, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _pair(num: int, num_classes: int, dim: int, dtype: torch.dtype = torch.float32):
    torch.manual_seed(num + num_classes + dim)
    logits = 3 * torch.randn(num, num_classes)
    return logits.to(dtype), torch.randn(num_classes, dim).to(dtype)


def check_against_the_reference() -> None:
    for case in CASES:
        for dtype in DTYPES:
            logits, embedding = _pair(*case, dtype)
            for top_k in (None, 1, 3):
                options = {"temperature": 0.7, "top_k": top_k}
                fused = class_mix(logits, embedding, **options, impl="triton")
                reference = class_mix(logits, embedding, **options, impl="reference")
                assert fused.dtype == dtype
                torch.testing.assert_close(
                    fused, reference, rtol=2e-5, atol=2e-6 if dtype == torch.float32 else 1e-3
                )


def check_mixed_dtypes_and_strides() -> None:
    logits, embedding = _pair(20, 36, 8)
    wide = torch.randn(20, 100)
    wide[:, 30:66] = logits
    for given in (wide[:, 30:66], logits.t().contiguous().t(), logits.to(torch.bfloat16)):
        fused = class_mix(given, embedding.half(), impl="triton")
        torch.testing.assert_close(fused, class_mix(given, embedding.half(), impl="reference"))


def check_extreme_logits() -> None:
    logits, embedding = _pair(8, 40, 8)
    logits[0, 3] = torch.nan
    logits[1] = -torch.inf
    # The first block of classes has nothing finite.
    logits[2, :35] = -torch.inf
    logits[3] = 1e4
    logits[4] = -1e4
    logits[4, 0] = 1e4
    logits[5, 7] = torch.inf
    logits[6] = torch.linspace(-1e4, 1e4, 40)
    for top_k in (None, 3):
        fused = class_mix(logits, embedding, top_k=top_k, impl="triton")
        reference = class_mix(logits, embedding, top_k=top_k, impl="reference")
        assert reference.isnan().any(dim=1).tolist() == [
            True,
            True,
            False,
            False,
            False,
            True,
            False,
            False,
        ]
        torch.testing.assert_close(fused, reference, equal_nan=True)


def check_ties_of_top_k() -> None:
    logits = torch.tensor([[1.0, 0.0, 1.0, -0.0, 2.0]])
    embedding = torch.eye(5)
    mixed = class_mix(logits, embedding, top_k=2, impl="triton")
    assert (mixed > 0).tolist() == [[True, False, True, False, True]]


def check_empty() -> None:
    with memory_guard.guard() as launches:
        assert class_mix(torch.empty(0, 3), torch.empty(3, 4), impl="triton").shape == (0, 4)
        assert class_mix(torch.empty(2, 3), torch.empty(3, 0), impl="triton").shape == (2, 0)
    assert launches == []


def check_reads_and_writes() -> None:
    for num, num_classes, dim in CASES:
        logits, embedding = _pair(num, num_classes, dim)
        with memory_guard.guard() as launches:
            class_mix(logits, embedding, top_k=2, impl="triton")
        (launch,) = launches
        assert (launch["out_ptr"].writes == 1).all()
        assert (launch["out_ptr"].reads == 0).all()
        # The logits once for each part of the dimension, the table once for each block of rows.
        assert (launch["logits_ptr"].reads == triton.cdiv(dim, triton_impl.MAX_BLOCK_DIM)).all()
        assert (launch["embedding_ptr"].reads == triton.cdiv(num, triton_impl.BLOCK_ROWS)).all()
        for name in ("logits_ptr", "embedding_ptr", "least_ptr"):
            assert name not in launch or (launch[name].writes == 0).all()


def check_a_wrong_length_is_caught() -> None:
    # The guard on the kernel itself: one class more than the table has.
    logits, embedding = _pair(4, 9, 16)
    with pytest.raises(Exception, match="read out of bounds"), memory_guard.guard():
        triton_impl.class_mix_kernel[(1, 1)](
            logits,
            None,
            embedding[:8],
            torch.empty(4, 16),
            4,
            9,
            9,
            16,
            1.0,
            UNIT=1,
            BLOCK_ROWS=16,
            BLOCK_CLASSES=32,
            BLOCK_DIM=16,
        )
