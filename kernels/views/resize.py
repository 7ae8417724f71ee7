"""Resizing and channel conversion of images, outside of any view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import LUMA

Size = int | tuple[int, int] | None


def asked_form(
    form: tuple[int, int, int], size: Size, channels: int | None
) -> tuple[int, int, int]:
    """Return the requested (channels, height, width) for images of the form (channels, height, width); None keeps theirs.

    Raises ValueError unless size is a side or (height, width) of at least 1 pixel and channels is 1 or 3.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    height, width = (size, size) if isinstance(size, int) else size or form[1:]
    if min(height, width) < 1:
        raise ValueError(f"size must be a side or (height, width) of at least 1 pixel, got {size}")
    return channels or form[0], height, width


def resized(
    images: Tensor, channels: int, height: int, width: int, *, interpolation: str = "bilinear"
) -> Tensor:
    """Convert images [N, C, H, W], uint8 or floats in [-1, 1], to [N, channels, height, width].

    Colour becomes grey by its BT.601 luma; a grey image is repeated as three channels without a copy. Resizing matches
    torchvision's resize: `F.interpolate`, bilinear (or bicubic, clipped), align_corners=False, with antialiasing, which
    takes effect where a side shrinks. Computed values are in [-1, 1] and float32, or float64 if the images are float64.
    Images that already have this form are returned unchanged.
    """
    if channels < images.shape[1]:
        r, g, b = _signed(images).unbind(1)
        images = (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze(1)
    if (height, width) != tuple(images.shape[2:]):
        images = _signed(images)
        # On CPUs, torch computes wrong sums for an output that is one pixel wide but not one pixel high.
        turn = width == 1
        images = F.interpolate(
            images.mT if turn else images,
            (width, height) if turn else (height, width),
            mode=interpolation,
            align_corners=False,
            antialias=True,
        )
        images = images.mT if turn else images
        if interpolation == "bicubic":
            images = images.clamp_(-1, 1)
    return images if channels == images.shape[1] else images.expand(-1, channels, -1, -1)


def shortened(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return the images with no side longer than in `size`, so that views only have to enlarge them."""
    height, width = size
    return resized(images, images.shape[1], *map(min, images.shape[2:], (height, width)))


def _signed(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images / 127.5 - 1
    return images if images.dtype == torch.float64 else images.float()
