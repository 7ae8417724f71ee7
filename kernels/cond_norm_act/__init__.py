"""Conditional normalization folded into scale and shift, activation, upsampling, phases and residual in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..op import Op
from .reference import ACTIVATIONS, output_shape, phase_weight

__all__ = ["ACTIVATIONS", "cond_norm_act", "phase_weight"]


def _fake(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
) -> Tensor:
    shape = output_shape(x, upsample, phases)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_cond_norm_act: Op[Tensor] = Op(
    "cond_norm_act(Tensor x, Tensor scale, Tensor shift, Tensor? residual, str activation, bool upsample,"
    " bool phases) -> Tensor",
    _fake,
    differentiable=("x", "scale", "shift", "residual"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def cond_norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    activation: str = "relu",
    upsample: bool = False,
    phases: bool = False,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Return y = act(U(x * scale + shift) + residual), channels-last, in x's dtype.

    x [N, C, H, W], fastest if channels-last; scale and shift [N, C], or [C] shared by all samples. A normalization with
    known statistics is such a scale and shift: gain / sqrt(var + eps) and bias - mean * gain / sqrt(var + eps).

    activation: one of ``none``, ``relu``, ``leaky_relu`` (slope 0.2), ``silu``, ``tanh``.
    upsample: U repeats each pixel to 2x2 (nearest); y is [N, C, 2H, 2W].
    phases: x is the [N, 4C, H+1, W+1] output of a phase convolution (`phase_weight`); U is the interleave
    ``y[2i+a, 2j+b] = x[group 2a+b][i+a, j+b]``, so y is [N, C, 2H, 2W] for scale and shift of C channels.
    residual: added before the activation. It has y's height and width, or half of both; then each pixel is repeated to 2x2.

    dtypes: float32, bfloat16 and float16, computed in float32; float64 in the reference only. Gradients flow to x, scale,
    shift and residual; the backward pass is the reference's. Raises ValueError for mismatched sizes or unknown names.
    """
    _check(x, scale, shift, activation, upsample, phases, residual)
    return _cond_norm_act(x, scale, shift, residual, activation, upsample, phases, impl=impl)


def _check(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    activation: str,
    upsample: bool,
    phases: bool,
    residual: Tensor | None,
) -> None:
    if x.ndim != 4 or x.dtype not in DTYPES:
        raise ValueError(
            f"x must be a floating-point [N, C, H, W], got {x.dtype} of shape {tuple(x.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; accepted: {', '.join(ACTIVATIONS)}")
    if phases and upsample:
        raise ValueError("phases already doubles the size of the image: leave upsample off")
    if phases and (x.shape[1] % 4 or 0 in x.shape[2:]):
        raise ValueError(
            f"with phases, x must be [N, 4C, H+1, W+1], the output of a phase convolution; got {tuple(x.shape)}"
        )
    num, channels, height, width = output_shape(x, upsample, phases)
    for name, value in (("scale", scale), ("shift", shift)):
        if tuple(value.shape) not in ((num, channels), (channels,)):
            raise ValueError(
                f"{name} must be [N, C] = [{num}, {channels}] or [C] = [{channels}], got {tuple(value.shape)}"
            )
    if residual is not None:
        full, half = (num, channels, height, width), (num, channels, height // 2, width // 2)
        fits_half = height % 2 == 0 and width % 2 == 0 and tuple(residual.shape) == half
        if tuple(residual.shape) != full and not fits_half:
            raise ValueError(
                f"residual must have y's shape {full} or half its size {half}, got {tuple(residual.shape)}"
            )
