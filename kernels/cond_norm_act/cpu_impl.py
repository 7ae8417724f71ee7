"""The call into csrc/cond_norm_act.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast import _C

from .. import dispatch
from .reference import ACTIVATIONS, output_shape

PLAIN, UPSAMPLE, PHASES = 0, 1, 2


def cond_norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
) -> Tensor:
    """act(U(x * scale + shift) + residual), channels-last."""
    shape = num, channels, height, _ = output_shape(x, upsample, phases)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    x = _adjacent_channels(x)
    per_sample = scale.ndim == 2 or shift.ndim == 2
    scale, shift = (_affine(s, num, channels, per_sample) for s in (scale, shift))
    address, strides, half = 0, x.stride(), False
    if residual is not None:
        residual = _adjacent_channels(residual.to(x.dtype))
        address, strides, half = residual.data_ptr(), residual.stride(), residual.shape[2] != height
    _C.cond_norm_act(
        dispatch.DTYPE_CODES[x.dtype],
        x.data_ptr(),
        x.stride(),
        address,
        strides,
        half,
        scale.data_ptr(),
        shift.data_ptr(),
        per_sample,
        out.data_ptr(),
        shape,
        PHASES if phases else UPSAMPLE if upsample else PLAIN,
        ACTIVATIONS.index(activation),
        dispatch.num_threads(),
    )
    return out


def _adjacent_channels(x: Tensor) -> Tensor:
    # A channel slice of a channels-last tensor is read in place, without a copy.
    return (
        x
        if x.stride(1) == 1 or x.shape[1] == 1
        else x.contiguous(memory_format=torch.channels_last)
    )


def _affine(values: Tensor, num: int, channels: int, per_sample: bool) -> Tensor:
    values = values.float()
    return (values.expand(num, channels) if per_sample else values).contiguous()
