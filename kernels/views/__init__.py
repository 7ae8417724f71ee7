"""Weak and strong views of a batch: per-sample warp, colour matrix, pointwise steps and normalisation in one read."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import reference
from .draws import uniforms
from .parameters import NUM_DRAWS, ViewParameters, draw, ranges
from .spec import CHOOSABLE, PRESETS, ViewSpec, view_preset

__all__ = [
    "CHOOSABLE",
    "PRESETS",
    "ViewParameters",
    "ViewSpec",
    "apply_views",
    "view_parameters",
    "view_preset",
    "views",
]

Statistic = float | tuple[float, ...]


def views(
    images: Tensor,
    weak: ViewSpec,
    strong: ViewSpec | None = None,
    *,
    seed: int,
    start: int = 0,
    index: Tensor | None = None,
    mean: Statistic = 0.5,
    std: Statistic = 0.5,
    dtype: torch.dtype = torch.float32,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One or two random views of each image."""
    num, channels, height, width = images.shape
    options = {"seed": seed, "start": start, "index": index, "device": images.device}
    size = {"channels": channels, "height": height, "width": width}
    first = view_parameters(weak, num, view="weak", **size, **options)  # type: ignore[arg-type]
    second = None
    if strong is not None:
        second = view_parameters(strong, num, view="strong", **size, **options)  # type: ignore[arg-type]
    return apply_views(images, first, second, mean=mean, std=std, dtype=dtype, impl=impl)


def view_parameters(
    spec: ViewSpec,
    num: int,
    *,
    seed: int,
    start: int = 0,
    index: Tensor | None = None,
    channels: int,
    height: int,
    width: int,
    view: Literal["weak", "strong"] = "weak",
    device: torch.device | str | None = None,
) -> ViewParameters:
    """The parameters `views` draws."""
    if index is None:
        index = torch.arange(start, start + num, device=device)
    first = 0 if view == "weak" else NUM_DRAWS
    numbers = uniforms(index, first + NUM_DRAWS, seed)[:, first:]
    return ViewParameters(draw(numbers, ranges(spec, channels), channels, height, width), channels)


def apply_views(
    images: Tensor,
    weak: ViewParameters,
    strong: ViewParameters | None = None,
    *,
    mean: Statistic = 0.5,
    std: Statistic = 0.5,
    dtype: torch.dtype = torch.float32,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Views with given parameters."""
    channels = images.shape[1]
    mean_, std_ = (tuple(s) if isinstance(s, tuple | list) else (float(s),) * channels for s in (mean, std))
    first = reference.view(images, weak.packed, mean_, std_, dtype)
    second = None if strong is None else reference.view(images, strong.packed, mean_, std_, dtype)
    return first, second
