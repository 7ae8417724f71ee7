"""Handwriting-like deformation: affine, a smooth displacement, stroke width and brightness, all from addressed draws."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.training.source.options import DeformationOptions

NUM_SCALARS = 8


def num_draws(options: DeformationOptions) -> int:
    """Number of standard normal draws for one image's deformation."""
    return NUM_SCALARS + 2 * options.displacement_grid**2


def deform(images: Tensor, draws: Tensor, options: DeformationOptions) -> Tensor:
    """Deform each image by its own row of draws.

    images float32 [N, C, H, W] in [-1, 1]; draws float32 [N, num_draws(options)], standard normal (the first
    eight become uniform through the normal distribution function). In this order: one bilinear resampling
    at the affine grid plus the displacement; mixture with the 3x3 maximum; gain above -1, clipped at 1.
    Returns the same shape and range. Not meant to be differentiated.
    """
    uniform = torch.special.ndtr(draws[:, :NUM_SCALARS])
    grid = _affine_grid(images, uniform[:, :5], options)
    if options.displacement:
        side = options.displacement_grid
        control = draws[:, NUM_SCALARS:].reshape(-1, 2, side, side) * (2 * options.displacement)
        smooth = F.interpolate(control, size=images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    out = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if options.thicken and options.thicken_probability:
        chosen = uniform[:, 5] < options.thicken_probability
        mixture = (uniform[:, 6] * options.thicken * chosen)[:, None, None, None]
        out = torch.lerp(out, F.max_pool2d(out, 3, 1, 1), mixture)
    gain = 1 + (options.gain - 1) * uniform[:, 7, None, None, None]
    return ((out + 1) * gain - 1).clamp_(max=1)


def _affine_grid(images: Tensor, uniform: Tensor, options: DeformationOptions) -> Tensor:
    """Sampling positions [N, H, W, 2]: the inverse of scale, rotation and shear, then the shift."""
    signed = 2 * uniform - 1
    angle = signed[:, 0] * math.radians(options.rotation)
    least, greatest = options.scale
    zoom = least + (greatest - least) * uniform[:, 1]
    shear = signed[:, 2] * options.shear
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    # A fraction of the side is twice as much in grid units, whose range is [-1, 1].
    shift = signed[:, 3:5] * (2 * options.translation)
    rows = (cosine, shear - sine, shift[:, 0], sine, cosine, shift[:, 1])
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    return F.affine_grid(theta, list(images.shape), align_corners=False)
