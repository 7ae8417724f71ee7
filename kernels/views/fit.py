"""Images brought to the channels of their views, and to a size that the views' one map only has to enlarge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import LUMA

Size = int | tuple[int, int] | None


def fit(images: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Images [N, channels, <= height, <= width] of images [N, C, H, W], uint8 or floats in [-1, 1].

    Colour becomes grey by its BT.601 luma; a grey image is repeated as three channels without a copy. A side that is longer
    than asked for is shortened with antialiasing (`F.interpolate`, bilinear, align_corners=False), which is what
    torchvision's resize does; a shorter one stays: the views' map enlarges it. What is computed is in [-1, 1] and
    float32, or float64 if the images are. Images that fit are returned as they are.
    """
    if channels < images.shape[1]:
        r, g, b = _signed(images).unbind(1)
        images = (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze(1)
    smaller = (min(images.shape[2], height), min(images.shape[3], width))
    if smaller != tuple(images.shape[2:]):
        images = F.interpolate(
            _signed(images), smaller, mode="bilinear", align_corners=False, antialias=True
        )
    return images if channels == images.shape[1] else images.expand(-1, channels, -1, -1)


def _signed(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images / 127.5 - 1
    return images if images.dtype == torch.float64 else images.float()
