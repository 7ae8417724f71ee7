"""A condition's kind follows from its dtype and shape; ambiguous ones are refused."""

from __future__ import annotations

import pytest
import torch

from ptgm_fast.generators import condition_kind

SIZES = {"num_classes": 5, "embedding_dim": 4}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (torch.zeros(3, dtype=torch.int64), "class"),
        (torch.zeros(0, dtype=torch.int64), "class"),
        (torch.zeros(3, 5), "soft-label"),
        (torch.zeros(3, 4), "embedding"),
        (torch.zeros(3, 5, dtype=torch.bfloat16), "soft-label"),
    ],
)
def test_form_follows_dtype_and_shape(condition: torch.Tensor, expected: str) -> None:
    assert condition_kind(condition, **SIZES) == expected


@pytest.mark.parametrize(
    "condition",
    [
        torch.zeros(3),
        torch.zeros(3, 6),
        torch.zeros(3, 5, 1),
        torch.zeros(3, dtype=torch.int32),
        torch.zeros(3, 5, dtype=torch.int64),
        torch.zeros(3, 5, dtype=torch.bool),
    ],
)
def test_other_tensors_are_refused(condition: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"is none of: class indices int64 \[N\], soft labels float \[N, 5\]"
    ):
        condition_kind(condition, **SIZES)


def test_equal_sizes_need_a_kind() -> None:
    condition = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="pass kind='soft-label' or kind='embedding'"):
        condition_kind(condition, num_classes=4, embedding_dim=4)
    for kind in ("soft-label", "embedding"):
        assert condition_kind(condition, num_classes=4, embedding_dim=4, kind=kind) == kind
    assert (
        condition_kind(torch.zeros(3, dtype=torch.int64), num_classes=4, embedding_dim=4) == "class"
    )


def test_a_stated_kind_is_checked() -> None:
    with pytest.raises(ValueError, match=r"float32 \[3, 5\] cannot be of kind 'embedding'"):
        condition_kind(torch.zeros(3, 5), **SIZES, kind="embedding")
    with pytest.raises(ValueError, match="unknown; accepted: class, soft-label, embedding"):
        condition_kind(torch.zeros(3, 5), **SIZES, kind="one-hot")  # type: ignore[arg-type]
