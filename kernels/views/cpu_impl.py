"""Calls into csrc/views.cpp and csrc/view_parameters.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptgm_fast import _C

from .. import dispatch
from .parameters import NUM_PARAMETERS


def views(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return both views; the second is empty without strong parameters."""
    weak = _rows(weak)
    shape = (*images.shape[:2], *size)
    first = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    second, strong_address = first.new_empty(0), 0
    if strong is not None:
        strong = _rows(strong)
        second, strong_address = torch.empty_like(first), strong.data_ptr()
    if len(images):
        _C.views(
            dispatch.DTYPE_CODES[images.dtype],
            images.data_ptr(),
            images.shape,
            images.stride(),
            size,
            weak.data_ptr(),
            strong_address,
            dispatch.DTYPE_CODES[dtype],
            first.data_ptr(),
            second.data_ptr(),
            mean,
            std,
            dispatch.num_threads(),
        )
    return first, second


def view_parameters(
    numbers: Tensor, spec_ranges: list[float], channels: int, height: int, width: int
) -> Tensor:
    """Return packed parameters [N, 24] from uniform numbers [N, >= 24]."""
    if numbers.stride(1) != 1:
        numbers = numbers.contiguous()
    packed = torch.empty(len(numbers), NUM_PARAMETERS, dtype=torch.float32)
    _C.view_parameters(
        numbers.data_ptr(),
        numbers.stride(0),
        len(numbers),
        spec_ranges,
        channels,
        height,
        width,
        packed.data_ptr(),
    )
    return packed


def _rows(packed: Tensor) -> Tensor:
    return packed.contiguous().float()
