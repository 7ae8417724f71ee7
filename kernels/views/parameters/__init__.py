"""The parameters of a view: how they are packed, composed from named values, and drawn from a spec.

Each sample has one row of 24 float32, the same for every implementation. Pixels are those of the view, to whose size
the image is resized:

======  ==================================================================================================
0..5    inverse affine map, two rows of three: from output to input pixel offsets from the image's centre
6..17   colour, three rows of four: three factors and an offset, on values in [0, 1]; grey images use 6 and 7,
        the factor and the offset
18      posterize levels, 2^bits; 0 is off
19      solarize threshold; above 1 is off
20..22  cutout square: top and left pixel (may be negative), side in pixels; side 0 is off
23      fill value in [-1, 1]
======  ==================================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...latents import uniforms
from ...latents.reference import STREAM_UNIFORMS, random_words
from ..spec import CHOOSABLE, ViewSpec

NUM_PARAMETERS = 24
# Uniform numbers per sample and view: fourteen values, then one key per choosable operation.
NUM_DRAWS = 14 + len(CHOOSABLE)
SOLARIZE_OFF = 2.0
# ITU-R BT.601, as in PIL and torchvision.
LUMA = (0.299, 0.587, 0.114)

Value = float | Tensor


@dataclass(frozen=True)
class ViewParameters:
    """Drawn or given parameters for one view of N images: ``packed`` [N, 24] float32, for 1 or 3 channels.

    The properties share memory with ``packed``.
    """

    packed: Tensor
    channels: int

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def affine(self) -> Tensor:
        """[N, 2, 3]: (x, y) offset from the centre in the input = affine @ (x, y, 1) of the output, in output pixels."""
        return self.packed[:, 0:6].reshape(-1, 2, 3)

    @property
    def colour(self) -> Tensor:
        """[N, C, C + 1]: factors and offset on values in [0, 1]."""
        if self.channels == 1:
            return self.packed[:, 6:8].reshape(-1, 1, 2)
        return self.packed[:, 6:18].reshape(-1, 3, 4)

    @property
    def posterize_levels(self) -> Tensor:
        """[N]: 2^bits; 0 is off."""
        return self.packed[:, 18]

    @property
    def solarize_threshold(self) -> Tensor:
        """[N]: in [0, 1]; above 1 is off."""
        return self.packed[:, 19]

    @property
    def cutout(self) -> Tensor:
        """[N, 3]: top, left and side in pixels."""
        return self.packed[:, 20:23]

    @property
    def fill(self) -> Tensor:
        """[N]: in [-1, 1]."""
        return self.packed[:, 23]

    @classmethod
    def compose(
        cls,
        num: int,
        channels: int,
        *,
        flip: Value = 0.0,
        translate_x: Value = 0.0,
        translate_y: Value = 0.0,
        rotate: Value = 0.0,
        scale: Value = 1.0,
        shear: Value = 0.0,
        brightness: Value = 1.0,
        contrast: Value = 1.0,
        saturation: Value = 1.0,
        hue: Value = 0.0,
        posterize: Value = 8,
        solarize: Value = SOLARIZE_OFF,
        cutout_top: Value = 0.0,
        cutout_left: Value = 0.0,
        cutout_side: Value = 0.0,
        fill: Value = -1.0,
        device: torch.device | str | None = None,
    ) -> ViewParameters:
        """Build parameters from named values, each a number or a tensor [num].

        flip 0 or 1; translate_* in pixels (positive right and down); rotate in degrees, clockwise; scale above 1
        enlarges; shear in degrees; brightness, contrast, saturation factors; hue in turns; posterize bits; solarize
        threshold in [0, 1]; cutout_* in pixels; fill in [-1, 1]. Raises ValueError unless channels is 1 or 3.
        """
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")

        def column(value: Value) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float64, device=device).expand(num)

        packed = torch.zeros(num, NUM_PARAMETERS, dtype=torch.float64, device=device)
        packed[:, 0:6] = _inverse_affine(
            column(flip),
            column(translate_x),
            column(translate_y),
            column(rotate),
            column(scale),
            column(shear),
        )
        if channels == 3:
            packed[:, 6:18] = _colour(
                column(brightness), column(contrast), column(saturation), column(hue)
            )
        else:
            packed[:, 6] = column(contrast) * column(brightness)
            packed[:, 7] = 0.5 - 0.5 * column(contrast)
        bits = column(posterize)
        packed[:, 18] = torch.where(bits >= 8, 0.0, 2.0**bits)
        for i, value in enumerate((solarize, cutout_top, cutout_left, cutout_side, fill)):
            packed[:, 19 + i] = column(value)
        return cls(packed.float(), channels)


def _inverse_affine(
    flip: Tensor, tx: Tensor, ty: Tensor, rotate: Tensor, scale: Tensor, shear: Tensor
) -> Tensor:
    """Return [N, 6]: the inverse of flip, then rotation @ shear x scale, then shift (torchvision's order)."""
    angle, tan = torch.deg2rad(rotate), torch.deg2rad(shear).tan()
    cos, sin = angle.cos(), angle.sin()
    a, b = (cos - sin * tan) / scale, (sin + cos * tan) / scale
    c, d = -sin / scale, cos / scale
    mirror = 1.0 - 2.0 * flip
    return torch.stack(
        [mirror * a, mirror * b, -mirror * (a * tx + b * ty), c, d, -(c * tx + d * ty)], dim=1
    )


def _colour(brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Return [N, 12]: hue @ saturation x contrast x brightness, and the contrast's offset.

    The rows of the hue and saturation matrices sum to 1, so the offset passes through them unchanged.
    """
    num = len(brightness)
    luma = brightness.new_tensor(LUMA).expand(3, 3)
    eye = torch.eye(3, dtype=brightness.dtype, device=brightness.device)
    saturate = luma + saturation[:, None, None] * (eye - luma)
    # Rodrigues' formula about (1, 1, 1) / sqrt(3): a third of a turn maps red to green to blue to red.
    cos, sin = (2 * math.pi * hue).cos()[:, None, None], (2 * math.pi * hue).sin()[:, None, None]
    cross = brightness.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotate = cos * eye + (1 - cos) / 3 + sin * cross
    matrix = (rotate @ saturate) * (contrast * brightness)[:, None, None]
    offset = (0.5 - 0.5 * contrast)[:, None, None].expand(num, 3, 1)
    return torch.cat([matrix, offset], dim=2).flatten(1)


def ranges(spec: ViewSpec, channels: int) -> list[float]:
    """Return the spec as the list of numbers that `draw` takes, with the magnitude applied.

    In order: flip, translate, rotate, scale low, scale high, shear, brightness, contrast, saturation, hue, fewest bits,
    solarize, cutout, fill, number of operations to choose (0: apply all), then one flag per choosable operation.
    """
    m, candidates = spec.magnitude, spec.operations(channels)
    # Grey images may lack two of the candidates; if no more than num_ops are left, all of them are applied.
    num_ops = spec.num_ops if spec.num_ops < len(candidates) else 0
    return [
        spec.flip,
        m * spec.translate,
        m * spec.rotate,
        1 + m * (spec.scale[0] - 1),
        1 + m * (spec.scale[1] - 1),
        m * spec.shear,
        m * spec.brightness,
        m * spec.contrast,
        m * spec.saturation,
        m * spec.hue,
        float(8 - round(m * (8 - spec.posterize))),
        m * spec.solarize,
        spec.cutout,
        spec.fill,
        float(num_ops),
        *(float(name in candidates) for name in CHOOSABLE),
    ]


def draw_numbers(
    num: int,
    dim: int,
    *,
    seed: int,
    start: int | Tensor,
    index: Tensor | None,
    device: torch.device,
    impl: str | None,
) -> Tensor:
    """Return uniform numbers, float32 [N, dim], for samples start .. start + num - 1, or for those in `index`.

    Raises ValueError if both are given, or if index is not int64 [N].
    """
    if index is None:
        return uniforms(num, dim, seed=seed, start=start, device=device, impl=impl)
    if isinstance(start, Tensor) or start != 0:
        raise ValueError("start and index both number the samples: give only one of them")
    if index.dtype != torch.int64 or tuple(index.shape) != (num,):
        raise ValueError(
            f"index must be int64 of shape [{num}], got {index.dtype} of shape {tuple(index.shape)}"
        )
    words = random_words(index.to(device), dim, seed=seed, stream=STREAM_UNIFORMS)
    return (words >> 8).float() * 2.0**-24


def draw(
    numbers: Tensor, spec_ranges: list[float], channels: int, height: int, width: int
) -> Tensor:
    """Return packed parameters [N, 24] from uniform numbers [N, >= 24], float32 in [0, 1), and a spec's `ranges`.

    Discrete decisions (flip, bits, cutout, the choice of operations) are computed in float32, so that every
    implementation makes the same ones; the rest is computed in float64 and rounded once.
    """
    (
        flip,
        shift,
        rotate,
        low,
        high,
        shear,
        bright,
        contrast,
        saturate,
        hue,
        bits,
        solarize,
        cut,
        fill,
    ) = spec_ranges[:14]
    num_ops, candidates = int(spec_ranges[14]), spec_ranges[15:]
    num = len(numbers)
    u = numbers[:, :NUM_DRAWS].float()
    chosen = torch.ones(num, len(CHOOSABLE), dtype=torch.bool, device=u.device)
    if num_ops:
        keys = torch.where(torch.tensor(candidates, device=u.device) > 0, u[:, 14:], -1.0)
        chosen = keys.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < num_ops

    def between(
        draw: int, lowest: float, highest: float, operation: str, identity: float
    ) -> Tensor:
        value = lowest + (highest - lowest) * u[:, draw].double()
        return torch.where(chosen[:, CHOOSABLE.index(operation)], value, identity)

    def factor(draw: int, change: float, operation: str) -> Tensor:
        return between(draw, max(0.0, 1.0 - change), 1.0 + change, operation, 1.0)

    fewest = torch.floor(u[:, 10] * (9.0 - bits)).clamp_max(8.0 - bits) + bits
    side = float(math.floor(cut * min(height, width) + 0.5))
    centre_y = torch.floor(u[:, 12] * height).clamp_max(height - 1)
    centre_x = torch.floor(u[:, 13] * width).clamp_max(width - 1)
    return ViewParameters.compose(
        num,
        channels,
        flip=(u[:, 0] < torch.tensor(flip, dtype=torch.float32)).double(),
        translate_x=between(1, -shift * width, shift * width, "translate", 0.0),
        translate_y=between(2, -shift * height, shift * height, "translate", 0.0),
        rotate=between(3, -rotate, rotate, "rotate", 0.0),
        scale=between(4, low, high, "scale", 1.0),
        shear=between(5, -shear, shear, "shear", 0.0),
        brightness=factor(6, bright, "brightness"),
        contrast=factor(7, contrast, "contrast"),
        saturation=factor(8, saturate, "saturation"),
        hue=between(9, -hue, hue, "hue", 0.0),
        posterize=torch.where(chosen[:, CHOOSABLE.index("posterize")], fewest, 8.0),
        solarize=between(11, 1.0 - solarize, 1.0, "solarize", SOLARIZE_OFF)
        if solarize
        else SOLARIZE_OFF,
        cutout_top=centre_y - side // 2,
        cutout_left=centre_x - side // 2,
        cutout_side=side,
        fill=fill,
        device=u.device,
    ).packed
