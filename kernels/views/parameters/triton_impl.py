"""`view_parameters` on a GPU: a program draws the parameters of a block of samples, by the formulas of `draw`."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import on_device
from ..spec import CHOOSABLE
from . import LUMA, NUM_PARAMETERS, SOLARIZE_OFF

BLOCK = 16
FIRST_KEY = 14
_OFF = tl.constexpr(SOLARIZE_OFF)
_LUMA_R, _LUMA_G, _LUMA_B = (tl.constexpr(value) for value in LUMA)
_FIRST_KEY = tl.constexpr(FIRST_KEY)
_NUM_OPERATIONS = tl.constexpr(len(CHOOSABLE))


@triton.jit
def _cos_sin(angle):
    # For |angle| <= pi, accurate to 1e-7: the series of the half angle. The library functions use local memory to
    # reduce large arguments.
    half = 0.5 * angle
    z = half * half
    s = -2.50521084e-8  # -1 / 11!
    s = s * z + 2.75573192e-6
    s = s * z - 1.98412698e-4
    s = s * z + 8.33333333e-3
    s = s * z - 1.66666667e-1
    sin = half + half * z * s
    c = 2.08767570e-9  # 1 / 12!
    c = c * z - 2.75573192e-7
    c = c * z + 2.48015873e-5
    c = c * z - 1.38888889e-3
    c = c * z + 4.16666667e-2
    c = c * z - 0.5
    cos = 1.0 + z * c
    return 1.0 - 2.0 * sin * sin, 2.0 * sin * cos


@triton.jit
def _chosen(numbers, inside, num_ops, candidates):
    # [BLOCK, 16]: 1 for the num_ops candidates with the largest keys, the first on ties; all 1 if num_ops is 0.
    column = tl.arange(0, 16)
    possible = (column < _NUM_OPERATIONS) & (((candidates >> column) & 1) != 0)
    mask = inside[:, None] & possible[None, :]
    keys = tl.load(numbers[:, None] + _FIRST_KEY + column[None, :], mask=mask, other=-1.0)
    larger = keys[:, None, :] > keys[:, :, None]
    earlier = (keys[:, None, :] == keys[:, :, None]) & (
        column[None, None, :] < column[None, :, None]
    )
    rank = tl.sum((larger | earlier).to(tl.int32), axis=2)
    return ((rank < num_ops) | (num_ops == 0)).to(tl.int32)


@triton.jit
def _is_chosen(chosen, operation: tl.constexpr):
    column = tl.arange(0, 16)[None, :]
    return tl.sum(tl.where(column == operation, chosen, 0), axis=1) != 0


@triton.jit
def _between(
    numbers, inside, draw: tl.constexpr, low, high, chosen, operation: tl.constexpr, identity
):
    value = low + (high - low) * tl.load(numbers + draw, mask=inside, other=0.0)
    return tl.where(_is_chosen(chosen, operation), value, identity)


@triton.jit
def _factor(numbers, inside, draw: tl.constexpr, change, chosen, operation: tl.constexpr):
    return _between(
        numbers, inside, draw, tl.maximum(1.0 - change, 0.0), 1.0 + change, chosen, operation, 1.0
    )


@triton.jit
def _colour_row(out, inside, hr, hg, hb, saturation, gain, offset):
    # A row (hr, hg, hb) of the hue rotation times luma + saturation (1 - luma). The row sums to 1.
    rest = 1.0 - saturation
    tl.store(out, (rest * _LUMA_R + saturation * hr) * gain, mask=inside)
    tl.store(out + 1, (rest * _LUMA_G + saturation * hg) * gain, mask=inside)
    tl.store(out + 2, (rest * _LUMA_B + saturation * hb) * gain, mask=inside)
    tl.store(out + 3, offset, mask=inside)


@triton.jit
def view_parameters_kernel(
    numbers_ptr,
    out_ptr,
    num,
    stride,
    height,
    width,
    flip: tl.float32,
    shift_x: tl.float32,
    shift_y: tl.float32,
    rotate: tl.float32,
    scale_low: tl.float32,
    scale_high: tl.float32,
    shear: tl.float32,
    brightness: tl.float32,
    contrast: tl.float32,
    saturation: tl.float32,
    hue: tl.float32,
    bits: tl.float32,
    solarize: tl.float32,
    side: tl.float32,
    fill: tl.float32,
    num_ops,
    candidates,
    CHANNELS: tl.constexpr,
    PARAMETERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (sample blocks,). Angles are in radians, shifts and the cutout's side in pixels; candidates is a bit mask."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < num
    numbers, out = numbers_ptr + sample * stride, out_ptr + sample * PARAMETERS
    chosen = _chosen(numbers, inside, num_ops, candidates)

    tx = _between(numbers, inside, 1, -shift_x, shift_x, chosen, 0, 0.0)
    ty = _between(numbers, inside, 2, -shift_y, shift_y, chosen, 0, 0.0)
    angle = _between(numbers, inside, 3, -rotate, rotate, chosen, 1, 0.0)
    scale = _between(numbers, inside, 4, scale_low, scale_high, chosen, 2, 1.0)
    slant = _between(numbers, inside, 5, -shear, shear, chosen, 3, 0.0)
    cos, sin = _cos_sin(angle)
    slant_cos, slant_sin = _cos_sin(slant)
    tan = slant_sin / slant_cos
    a, b, c, d = (cos - sin * tan) / scale, (sin + cos * tan) / scale, -sin / scale, cos / scale
    mirror = tl.where(tl.load(numbers, mask=inside, other=1.0) < flip, -1.0, 1.0)
    tl.store(out, mirror * a, mask=inside)
    tl.store(out + 1, mirror * b, mask=inside)
    tl.store(out + 2, -mirror * (a * tx + b * ty), mask=inside)
    tl.store(out + 3, c, mask=inside)
    tl.store(out + 4, d, mask=inside)
    tl.store(out + 5, -(c * tx + d * ty), mask=inside)

    bright = _factor(numbers, inside, 6, brightness, chosen, 4)
    contrasts = _factor(numbers, inside, 7, contrast, chosen, 5)
    gain, offset = bright * contrasts, 0.5 - 0.5 * contrasts
    if CHANNELS == 3:
        saturate = _factor(numbers, inside, 8, saturation, chosen, 6)
        turn = _between(numbers, inside, 9, -hue, hue, chosen, 7, 0.0)
        cosine, sine = _cos_sin(turn)
        sine *= 0.5773502691896258  # 1 / sqrt(3)
        third = (1.0 - cosine) / 3.0
        same, before, after = cosine + third, third - sine, third + sine
        _colour_row(out + 6, inside, same, before, after, saturate, gain, offset)
        _colour_row(out + 10, inside, after, same, before, saturate, gain, offset)
        _colour_row(out + 14, inside, before, after, same, saturate, gain, offset)
    else:
        tl.store(out + 6, gain, mask=inside)
        tl.store(out + 7, offset, mask=inside)
        for k in tl.static_range(8, 18):
            tl.store(out + k, tl.zeros_like(gain), mask=inside)

    kept = tl.floor(tl.load(numbers + 10, mask=inside, other=0.0) * (9.0 - bits))
    kept = tl.minimum(kept, 8.0 - bits) + bits
    lowers = _is_chosen(chosen, 8) & (kept < 8.0)
    tl.store(out + 18, tl.where(lowers, (1 << kept.to(tl.int32)).to(tl.float32), 0.0), mask=inside)
    threshold = _between(numbers, inside, 11, 1.0 - solarize, 1.0, chosen, 9, _OFF)
    tl.store(out + 19, tl.where(solarize > 0.0, threshold, _OFF), mask=inside)
    half = tl.floor(side / 2.0)
    for k in tl.static_range(2):
        size = tl.cast(height if k == 0 else width, tl.float32)
        centre = tl.floor(tl.load(numbers + 12 + k, mask=inside, other=0.0) * size)
        tl.store(out + 20 + k, tl.minimum(centre, size - 1.0) - half, mask=inside)
    tl.store(out + 22, tl.zeros_like(gain) + side, mask=inside)
    tl.store(out + 23, tl.zeros_like(gain) + fill, mask=inside)


def view_parameters(
    numbers: Tensor, spec_ranges: list[float], channels: int, height: int, width: int
) -> Tensor:
    """Return packed parameters [N, 24] from uniform numbers [N, >= 24]."""
    flip, shift, rotate, low, high, shear, *factors, hue, bits, solarize, cutout, fill, num_ops = (
        spec_ranges[:15]
    )
    candidates = sum(1 << k for k, flag in enumerate(spec_ranges[15:]) if flag)
    num = len(numbers)
    packed = torch.empty((num, NUM_PARAMETERS), dtype=torch.float32, device=numbers.device)
    if num == 0:
        return packed
    if numbers.stride(1) != 1:
        numbers = numbers.contiguous()
    with on_device(numbers.device):
        view_parameters_kernel[(triton.cdiv(num, BLOCK),)](
            numbers,
            packed,
            num,
            numbers.stride(0),
            height,
            width,
            flip,
            shift * width,
            shift * height,
            math.radians(rotate),
            low,
            high,
            math.radians(shear),
            *factors,
            2 * math.pi * hue,
            bits,
            solarize,
            float(math.floor(cutout * min(height, width) + 0.5)),
            fill,
            int(num_ops),
            candidates,
            CHANNELS=channels,
            PARAMETERS=NUM_PARAMETERS,
            BLOCK=BLOCK,
        )
    return packed
