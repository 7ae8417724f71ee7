"""cond_norm_act on a GPU: a program reads a tile of pixels x channels of one sample once and writes it once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device
from .reference import LEAKY_SLOPE

PLAIN, UPSAMPLE, PHASES = 0, 1, 2
RESIDUAL_NONE, RESIDUAL_FULL, RESIDUAL_HALF = 0, 1, 2
# Values per program: with four warps, eight per thread, i.e. one 128-bit access in bfloat16 and two in float32.
VALUES = 1024


@triton.jit
def _activate(v, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    # The comparisons propagate NaN, as PyTorch's activations do.
    if ACTIVATION == "relu":
        v = tl.where(v < 0.0, 0.0, v)
    elif ACTIVATION == "leaky_relu":
        v = tl.where(v < 0.0, v * SLOPE, v)
    elif ACTIVATION == "silu":
        v = v * tl.sigmoid(v)
    elif ACTIVATION == "tanh":
        # Below 0.625, the series of Cephes' tanhf: 2 sigmoid(2v) - 1 suffers from cancellation there.
        z = v * v
        s = -5.70498872745e-3
        s = s * z + 2.06390887954e-2
        s = s * z - 5.37397155531e-2
        s = s * z + 1.33314422036e-1
        s = s * z - 3.33332819422e-1
        v = tl.where(z < 0.390625, v + v * z * s, 2.0 * tl.sigmoid(2.0 * v) - 1.0)
    return v


@triton.jit
def cond_norm_act_kernel(
    x,
    scale,
    shift,
    residual,
    out,
    channels,
    height,
    width,
    x_stride_n,
    x_stride_h,
    x_stride_w,
    residual_stride_n,
    residual_stride_h,
    residual_stride_w,
    affine_stride,
    MODE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Grid (samples x pixel blocks, channel blocks): only the first axis can exceed 65,535 programs.

    `height` and `width` are x's, or the output's in phases mode.
    MODE: 0 plain, 1 nearest 2x upsampling, 2 phases. RESIDUAL: 0 none, 1 the output's size, 2 half of it.
    """
    blocks = tl.cdiv(height * width, BLOCK_PIXELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[:, None]
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[None, :]
    inside = (pixel < height * width) & (channel < channels)
    i, j = (pixel // width).to(tl.int64), (pixel % width).to(tl.int64)

    x_in = x + sample * x_stride_n + channel
    if MODE == 2:
        group = (2 * (i & 1) + (j & 1)) * channels
        x_in += ((i >> 1) + (i & 1)) * x_stride_h + ((j >> 1) + (j & 1)) * x_stride_w + group
    else:
        x_in += i * x_stride_h + j * x_stride_w
    in_channels = channel < channels
    gain = tl.load(scale + sample * affine_stride + channel, mask=in_channels, other=0.0).to(
        tl.float32
    )
    bias = tl.load(shift + sample * affine_stride + channel, mask=in_channels, other=0.0).to(
        tl.float32
    )
    v = tl.load(x_in, mask=inside, other=0.0).to(tl.float32) * gain + bias

    r = residual + sample * residual_stride_n + channel
    if MODE == 1:
        out_row = 2 * tl.cast(width, tl.int64) * channels
        target = (
            out
            + sample * (4 * height * width) * channels
            + 2 * i * out_row
            + 2 * j * channels
            + channel
        )
        if RESIDUAL == 2:
            r_in = r + i * residual_stride_h + j * residual_stride_w
            v += tl.load(r_in, mask=inside, other=0.0).to(tl.float32)
        for a in tl.static_range(2):
            for b in tl.static_range(2):
                y = v
                if RESIDUAL == 1:
                    r_in = r + (2 * i + a) * residual_stride_h + (2 * j + b) * residual_stride_w
                    y += tl.load(r_in, mask=inside, other=0.0).to(tl.float32)
                y = _activate(y, ACTIVATION, SLOPE)
                tl.store(
                    target + a * out_row + b * channels, y.to(out.dtype.element_ty), mask=inside
                )
    else:
        if RESIDUAL == 1:
            v += tl.load(
                r + i * residual_stride_h + j * residual_stride_w, mask=inside, other=0.0
            ).to(tl.float32)
        elif RESIDUAL == 2:
            r_in = r + (i >> 1) * residual_stride_h + (j >> 1) * residual_stride_w
            v += tl.load(r_in, mask=inside, other=0.0).to(tl.float32)
        target = (
            out + sample * (height * width) * channels + pixel.to(tl.int64) * channels + channel
        )
        tl.store(target, _activate(v, ACTIVATION, SLOPE).to(out.dtype.element_ty), mask=inside)


def cond_norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
) -> Tensor:
    """act(U(x * scale + shift) + residual) in one kernel."""
    num, channels, height, width = x.shape
    mode = PLAIN
    if phases:
        mode, channels, height, width = PHASES, channels // 4, 2 * height - 2, 2 * width - 2
    elif upsample:
        mode = UPSAMPLE
    repeat = 2 if upsample else 1
    shape = (num, channels, repeat * height, repeat * width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    x = _adjacent_channels(x)
    per_sample = scale.ndim == 2 or shift.ndim == 2
    scale, shift = (_affine(s, num, channels, per_sample) for s in (scale, shift))
    kind = RESIDUAL_NONE
    if residual is not None:
        residual = _adjacent_channels(residual)
        kind = RESIDUAL_FULL if residual.shape[2:] == out.shape[2:] else RESIDUAL_HALF
    other = x if residual is None else residual
    block_channels = min(triton.next_power_of_2(channels), 128)
    block_pixels = max(1, VALUES // block_channels)
    grid = (num * triton.cdiv(height * width, block_pixels), triton.cdiv(channels, block_channels))
    with on_device(x.device):
        cond_norm_act_kernel[grid](
            x,
            scale,
            shift,
            other,
            out,
            channels,
            height,
            width,
            x.stride(0),
            x.stride(2),
            x.stride(3),
            other.stride(0),
            other.stride(2),
            other.stride(3),
            channels if per_sample else 0,
            MODE=mode,
            RESIDUAL=kind,
            ACTIVATION=activation,
            SLOPE=LEAKY_SLOPE,
            BLOCK_PIXELS=block_pixels,
            BLOCK_CHANNELS=block_channels,
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
    return (values.expand(num, channels) if per_sample else values).contiguous()
