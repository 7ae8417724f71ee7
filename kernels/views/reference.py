"""The reference definition of a view in plain PyTorch: resampling, one colour matrix, pointwise steps, normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import draw as view_parameters
from .resize import shortened

__all__ = ["view", "view_parameters", "views"]


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
    images = shortened(images, size)
    first = view(images, weak, mean, std, dtype, size)
    if strong is None:
        return first, first.new_empty(0)
    return first, view(images, strong, mean, std, dtype, size)


def view(
    images: Tensor,
    packed: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    size: Sequence[int],
) -> Tensor:
    """Return one view [N, C, *size] of `dtype`, channels-last, of images [N, C, H, W] with parameters [N, 24].

    size: at least that of the images, see `warp`. Computes in float32, or in float64 if the images are float64.
    """
    compute = torch.float64 if images.dtype == torch.float64 else torch.float32
    num, channels = images.shape[:2]
    height, width = size
    packed = packed.to(compute)
    unit = images.to(compute) / 255 if images.dtype == torch.uint8 else (images.to(compute) + 1) / 2
    fill = ((packed[:, 23] + 1) / 2).view(num, 1, 1, 1)
    if num == 0:
        empty = images.new_empty((0, channels, height, width), dtype=dtype)
        return empty.to(memory_format=torch.channels_last)

    values = warp(unit, packed[:, :6], fill, size)
    values = recolour(values, packed[:, 6:18]).clamp(0, 1)
    values = posterize(values, packed[:, 18].view(num, 1, 1, 1))
    threshold = packed[:, 19].view(num, 1, 1, 1)
    values = torch.where(values >= threshold, 1 - values, values)
    values = torch.where(cutout_mask(packed[:, 20:23], height, width), fill, values)
    shape = (1, channels, 1, 1)
    mean_, std_ = (
        torch.tensor(s, dtype=compute, device=images.device).view(shape) for s in (mean, std)
    )
    return ((values - mean_) / std_).to(dtype).contiguous(memory_format=torch.channels_last)


def warp(unit: Tensor, affine: Tensor, fill: Tensor, size: Sequence[int]) -> Tensor:
    """Sample the image bilinearly at affine @ (x, y, 1) about the centre; returns [N, C, *size].

    The image is enlarged to `size` and padded with `fill`.
    """
    height, width = size
    ys = torch.arange(height, dtype=unit.dtype, device=unit.device) - (height - 1) / 2
    xs = torch.arange(width, dtype=unit.dtype, device=unit.device) - (width - 1) / 2
    ax, bx, cx, ay, by, cy = (column.view(-1, 1, 1) for column in affine.unbind(1))
    # Offsets from the centre in pixels, then converted to grid_sample's [-1, 1] from edge to edge.
    x_in = enlarged(ax * xs + bx * ys[:, None] + cx, unit.shape[-1], width)
    y_in = enlarged(ay * xs + by * ys[:, None] + cy, unit.shape[-2], height)
    grid = torch.stack([x_in * (2 / unit.shape[-1]), y_in * (2 / unit.shape[-2])], dim=-1)
    # Zero padding of (image - fill) amounts to padding the image with fill.
    return (
        F.grid_sample(unit - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        + fill
    )


def enlarged(offset: Tensor, side: int, larger: int) -> Tensor:
    """Convert offsets from the centre, in pixels of the image enlarged to `larger`, to pixels of the image of `side`.

    As in `F.interpolate` (align_corners=False), the last half pixel repeats the border. Beyond the outer pixel centres of
    the enlarged image, the fill is reached within one of its pixels, as without scaling.
    """
    if side == larger:
        return offset
    edge, far = (side - 1) / 2, (larger - 1) / 2
    within = offset.clamp(-far, far)
    return (within * (side / larger)).clamp(-edge, edge) + (offset - within)


def recolour(values: Tensor, colour: Tensor) -> Tensor:
    """Multiply values [N, 3, H, W] by the 3x4 matrix [N, 12], or grey values by a factor, plus an offset."""
    if values.shape[1] == 1:
        factor, offset = (colour[:, i].view(-1, 1, 1, 1) for i in (0, 1))
        return values * factor + offset
    matrix = colour.unflatten(1, (3, 4))
    return torch.baddbmm(matrix[:, :, 3:], matrix[:, :, :3], values.flatten(2)).view_as(values)


def posterize(values: Tensor, levels: Tensor) -> Tensor:
    """Return floor(u L) / L, at most (L - 1) / L, where L > 0; elsewhere u."""
    lowered = torch.minimum((values * levels).floor(), levels - 1) / levels.clamp_min(1)
    return torch.where(levels > 0, lowered, values)


def cutout_mask(cutout: Tensor, height: int, width: int) -> Tensor:
    """Return a mask [N, 1, H, W], true inside the square (top, left, side)."""
    top, left, side = (c.view(-1, 1, 1, 1) for c in cutout.unbind(1))
    ys = torch.arange(height, dtype=cutout.dtype, device=cutout.device).view(-1, 1)
    xs = torch.arange(width, dtype=cutout.dtype, device=cutout.device)
    return (ys >= top) & (ys < top + side) & (xs >= left) & (xs < left + side)
