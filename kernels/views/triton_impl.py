"""Views on a GPU: one program computes a block of pixels of both views of a sample, so that the image is read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device
from .parameters import NUM_PARAMETERS
from .parameters.triton_impl import view_parameters
from .resize import shortened

__all__ = ["view_parameters", "views"]

# Pixels per program: small enough that 12 gathered values per pixel stay in registers.
BLOCK = 256


@triton.jit
def _unit(value, IS_BYTE: tl.constexpr):
    if IS_BYTE:
        return value.to(tl.float32) / 255.0
    return (value.to(tl.float32) + 1.0) * 0.5


@triton.jit
def _sample(
    plane, base, dx, dy, in_left, in_right, in_top, in_bottom, fx, fy, fill, IS_BYTE: tl.constexpr
):
    # Bilinear over the image padded with fill; the values of masked loads are not used.
    a = tl.load(plane + base, mask=in_left & in_top)
    b = tl.load(plane + base + dx, mask=in_right & in_top)
    c = tl.load(plane + base + dy, mask=in_left & in_bottom)
    d = tl.load(plane + base + dx + dy, mask=in_right & in_bottom)
    a = tl.where(in_left & in_top, _unit(a, IS_BYTE), fill)
    b = tl.where(in_right & in_top, _unit(b, IS_BYTE), fill)
    c = tl.where(in_left & in_bottom, _unit(c, IS_BYTE), fill)
    d = tl.where(in_right & in_bottom, _unit(d, IS_BYTE), fill)
    top = a + fx * (b - a)
    bottom = c + fx * (d - c)
    return top + fy * (bottom - top)


@triton.jit
def _enlarged(offset, scale, side, larger):
    # As `reference.enlarged`: the border repeats for half a pixel, the fill is reached within a pixel of the enlarged image.
    edge, far = 0.5 * (side - 1), 0.5 * (larger - 1)
    within = tl.minimum(tl.maximum(offset, -far), far)
    return tl.minimum(tl.maximum(within * scale, -edge), edge) + (offset - within)


@triton.jit
def _finish(u, levels, threshold, hole, fill, mean, std):
    # NaN passes through: a diverged generator must not look like a valid image.
    u = tl.where(u < 0.0, 0.0, u)
    u = tl.where(u > 1.0, 1.0, u)
    lowered = tl.floor(u * levels)
    lowered = tl.where(lowered > levels - 1.0, levels - 1.0, lowered) / tl.maximum(levels, 1.0)
    u = tl.where(levels > 0.0, lowered, u)
    u = tl.where(u >= threshold, 1.0 - u, u)
    u = tl.where(hole, fill, u)
    return (u - mean) / std


@triton.jit
def _one_view(
    image,
    row,
    means,
    stds,
    out,
    pixel,
    height,
    width,
    out_height,
    out_width,
    scale_y,
    scale_x,
    stride_c,
    stride_h,
    stride_w,
    CHANNELS: tl.constexpr,
    IS_BYTE: tl.constexpr,
    RESIZED: tl.constexpr,
):
    inside = pixel < out_height * out_width
    i, j = pixel // out_width, pixel % out_width
    y, x = i.to(tl.float32) - 0.5 * (out_height - 1), j.to(tl.float32) - 0.5 * (out_width - 1)
    x_in = tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2)
    y_in = tl.load(row + 3) * x + tl.load(row + 4) * y + tl.load(row + 5)
    if RESIZED:
        x_in = _enlarged(x_in, scale_x, width, out_width)
        y_in = _enlarged(y_in, scale_y, height, out_height)
    x_in += 0.5 * (width - 1)
    y_in += 0.5 * (height - 1)
    # One pixel or more outside the image, everything is fill, so positions are clamped there; NaN goes there too.
    x_in = tl.minimum(tl.maximum(x_in, -1.0), tl.cast(width, tl.float32))
    y_in = tl.minimum(tl.maximum(y_in, -1.0), tl.cast(height, tl.float32))
    left, top = tl.floor(x_in), tl.floor(y_in)
    fx, fy = x_in - left, y_in - top
    jl, it = left.to(tl.int32), top.to(tl.int32)
    in_left, in_right = inside & (jl >= 0) & (jl < width), inside & (jl + 1 < width)
    in_top, in_bottom = (it >= 0) & (it < height), it + 1 < height
    base = it.to(tl.int64) * stride_h + jl.to(tl.int64) * stride_w

    fill = (tl.load(row + 23) + 1.0) * 0.5
    levels, threshold = tl.load(row + 18), tl.load(row + 19)
    hole_top, hole_left, side = tl.load(row + 20), tl.load(row + 21), tl.load(row + 22)
    hole = (i >= hole_top) & (i < hole_top + side) & (j >= hole_left) & (j < hole_left + side)

    r = _sample(
        image, base, stride_w, stride_h, in_left, in_right, in_top, in_bottom, fx, fy, fill, IS_BYTE
    )
    if CHANNELS == 1:
        u = r * tl.load(row + 6) + tl.load(row + 7)
        value = _finish(u, levels, threshold, hole, fill, means[0], stds[0])
        tl.store(out + pixel, value.to(out.dtype.element_ty), mask=inside)
    else:
        g = _sample(
            image + stride_c,
            base,
            stride_w,
            stride_h,
            in_left,
            in_right,
            in_top,
            in_bottom,
            fx,
            fy,
            fill,
            IS_BYTE,
        )
        b = _sample(
            image + 2 * stride_c,
            base,
            stride_w,
            stride_h,
            in_left,
            in_right,
            in_top,
            in_bottom,
            fx,
            fy,
            fill,
            IS_BYTE,
        )
        for c in tl.static_range(3):
            matrix = row + 6 + 4 * c
            u = (
                tl.load(matrix) * r
                + tl.load(matrix + 1) * g
                + tl.load(matrix + 2) * b
                + tl.load(matrix + 3)
            )
            value = _finish(u, levels, threshold, hole, fill, means[c], stds[c])
            tl.store(out + 3 * pixel + c, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def views_kernel(
    images,
    weak,
    strong,
    weak_out,
    strong_out,
    height,
    width,
    out_height,
    out_width,
    scale_y: tl.float32,
    scale_x: tl.float32,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    mean0: tl.float32,
    mean1: tl.float32,
    mean2: tl.float32,
    std0: tl.float32,
    std1: tl.float32,
    std2: tl.float32,
    CHANNELS: tl.constexpr,
    IS_BYTE: tl.constexpr,
    RESIZED: tl.constexpr,
    TWO: tl.constexpr,
    PARAMETERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (samples, pixel blocks): only the first axis can exceed 65,535 programs.

    Images have any strides, outputs are channels-last. strong* are used only if TWO; out_height, out_width and scale_*
    (input pixels per output pixel) only if RESIZED.
    """
    if not RESIZED:
        out_height, out_width = height, width
    sample = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image = images + sample * stride_n
    values = sample * (out_height * out_width) * CHANNELS
    _one_view(
        image,
        weak + sample * PARAMETERS,
        (mean0, mean1, mean2),
        (std0, std1, std2),
        weak_out + values,
        pixel,
        height,
        width,
        out_height,
        out_width,
        scale_y,
        scale_x,
        stride_c,
        stride_h,
        stride_w,
        CHANNELS,
        IS_BYTE,
        RESIZED,
    )
    if TWO:
        _one_view(
            image,
            strong + sample * PARAMETERS,
            (mean0, mean1, mean2),
            (std0, std1, std2),
            strong_out + values,
            pixel,
            height,
            width,
            out_height,
            out_width,
            scale_y,
            scale_x,
            stride_c,
            stride_h,
            stride_w,
            CHANNELS,
            IS_BYTE,
            RESIZED,
        )


def views(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    size: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return both views, from one kernel that runs after `shortened`; the second is empty without strong parameters."""
    images = shortened(images, size)
    num, channels, height, width = images.shape
    out_height, out_width = size
    first = torch.empty(
        (num, channels, out_height, out_width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )
    second = first.new_empty(0) if strong is None else torch.empty_like(first)
    if num == 0:
        return first, second
    weak = weak.contiguous()
    strong = None if strong is None else strong.contiguous()
    # The kernel takes three of each; for grey images it uses only the first.
    means, stds = ([*s] * (3 // channels) for s in (mean, std))
    grid = (num, triton.cdiv(out_height * out_width, BLOCK))
    with on_device(images.device):
        views_kernel[grid](
            images,
            weak,
            weak if strong is None else strong,
            first,
            first if strong is None else second,
            height,
            width,
            out_height,
            out_width,
            height / out_height,
            width / out_width,
            *images.stride(),
            *means,
            *stds,
            CHANNELS=channels,
            IS_BYTE=images.dtype == torch.uint8,
            RESIZED=(height, width) != (out_height, out_width),
            TWO=strong is not None,
            PARAMETERS=NUM_PARAMETERS,
            BLOCK=BLOCK,
        )
    return first, second
