"""Weak and strong views of a batch: per-sample warp, colour matrix, pointwise steps and normalization in one pass."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..op import Op
from .parameters import NUM_DRAWS, NUM_PARAMETERS, ViewParameters, draw_numbers, ranges
from .resize import Size, asked_form, resized
from .spec import CHOOSABLE, PRESETS, ViewSpec, view_preset

__all__ = [
    "CHOOSABLE",
    "PRESETS",
    "ViewParameters",
    "ViewSpec",
    "apply_views",
    "asked_form",
    "resized",
    "view_parameters",
    "view_preset",
    "views",
]


def _fake_views(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Any,
    std: Any,
    dtype: torch.dtype,
    size: Any,
) -> tuple[Tensor, Tensor]:
    shape = (*images.shape[:2], *size)
    first = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    return first, images.new_empty(0, dtype=dtype) if strong is None else torch.empty_like(first)


_views: Op[tuple[Tensor, Tensor]] = Op(
    "views(Tensor images, Tensor weak, Tensor? strong, float[] mean, float[] std, ScalarType dtype, SymInt[] size)"
    " -> (Tensor, Tensor)",
    _fake_views,
    differentiable=("images",),
)
_view_parameters: Op[Tensor] = Op(
    "view_parameters(Tensor numbers, float[] ranges, int channels, int height, int width) -> Tensor",
    lambda numbers, *_: numbers.new_empty((len(numbers), NUM_PARAMETERS), dtype=torch.float32),
)
Statistic = float | tuple[float, ...]
IMAGE_DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.float64)
OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def views(
    images: Tensor,
    weak: ViewSpec,
    strong: ViewSpec | None = None,
    *,
    seed: int,
    start: int | Tensor = 0,
    index: Tensor | None = None,
    mean: Statistic = 0.5,
    std: Statistic = 0.5,
    dtype: torch.dtype = torch.float32,
    size: Size = None,
    channels: int | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return one or two random views of each image, normalized for a classifier.

    With u the image in [0, 1] (``images / 255`` for uint8, ``(images + 1) / 2`` for floats in [-1, 1]):
    view = (cutout(solarize(posterize(clip(colour(warp(u)))))) - mean) / std, with the steps of `ViewSpec` and separate
    parameters for each sample. Sample i has the number ``start + i``, or ``index[i]`` if `index`, int64 [N], is given.
    Its views depend only on (seed, number, spec, image), not on the batch; the weak view does not depend on whether a
    strong one is requested.

    images [N, C, H, W]: C is 1 or 3, uint8 or floating-point (float64 in the reference only), any strides. mean and std
    apply to values in [0, 1]: a number, or one per channel; 0.5 and 0.5 give outputs in [-1, 1]. Returns (weak, strong or
    None), each [N, C', H', W'] of `dtype`, channels-last. A gradient flows to floating-point images; the backward pass is
    the reference's. Raises ValueError for invalid shapes, dtypes or statistics.

    size: the side or (H', W') of the views; None keeps the images' size. The views are those of the image resized like
    torchvision's resize (bilinear, antialiased): shifts, cutout and the fill at the border are in pixels of the views. A
    side that grows is enlarged by the view's own map, so that warp and resize are a single bilinear sampling of the image;
    a side that shrinks is shortened first, once for both views (`shortened`). channels: C', 1 or 3; None keeps the images'
    channels. Grey is repeated, colour becomes its BT.601 luma.
    """
    images, (height, width) = _fitted(images, dtype, size, channels)
    num, channels = images.shape[:2]
    needed = NUM_DRAWS if strong is None else 2 * NUM_DRAWS
    numbers = draw_numbers(
        num, needed, seed=seed, start=start, index=index, device=images.device, impl=impl
    )
    packed = [
        _view_parameters(
            numbers[:, NUM_DRAWS * i :], ranges(spec, channels), channels, height, width, impl=impl
        )
        for i, spec in enumerate((weak, strong))
        if spec is not None
    ]
    second = None if strong is None else packed[1]
    return _apply(images, packed[0], second, mean, std, dtype, (height, width), impl)


def view_parameters(
    spec: ViewSpec,
    num: int,
    *,
    channels: int,
    height: int,
    width: int,
    seed: int,
    start: int | Tensor = 0,
    index: Tensor | None = None,
    view: Literal["weak", "strong"] = "weak",
    device: torch.device | str = "cpu",
    impl: str | None = None,
) -> ViewParameters:
    """Return the parameters that `views` draws for the weak (or strong) views of `num` images, at this view size.

    Raises ValueError unless channels is 1 or 3, the sizes are positive and view is "weak" or "strong".
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    if view not in ("weak", "strong"):
        raise ValueError(f"view must be 'weak' or 'strong', got {view!r}")
    first = 0 if view == "weak" else NUM_DRAWS
    numbers = draw_numbers(
        num,
        first + NUM_DRAWS,
        seed=seed,
        start=start,
        index=index,
        device=torch.device(device),
        impl=impl,
    )
    packed = _view_parameters(
        numbers[:, first:], ranges(spec, channels), channels, height, width, impl=impl
    )
    return ViewParameters(packed, channels)


def apply_views(
    images: Tensor,
    weak: ViewParameters,
    strong: ViewParameters | None = None,
    *,
    mean: Statistic = 0.5,
    std: Statistic = 0.5,
    dtype: torch.dtype = torch.float32,
    size: Size = None,
    channels: int | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return `views` with given parameters (from `view_parameters` or `ViewParameters.compose`), one row per image.

    Raises ValueError if the parameters are for another number of images or channels, or on another device, and where
    `views` does.
    """
    images, view_size = _fitted(images, dtype, size, channels)
    for name, given in (("weak", weak), ("strong", strong)):
        if given is None:
            continue
        if given.channels != images.shape[1] or len(given) != len(images):
            raise ValueError(
                f"{name} parameters are for {len(given)} images of {given.channels} channels, "
                f"but there are {len(images)} images of {images.shape[1]}"
            )
        if given.packed.device != images.device:
            raise ValueError(
                f"{name} parameters are on {given.packed.device}, the images on {images.device}"
            )
    second = None if strong is None else strong.packed
    return _apply(images, weak.packed, second, mean, std, dtype, view_size, impl)


def _apply(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Statistic,
    std: Statistic,
    dtype: torch.dtype,
    size: tuple[int, int],
    impl: str | None,
) -> tuple[Tensor, Tensor | None]:
    means, stds = _statistic("mean", mean, images.shape[1]), _statistic("std", std, images.shape[1])
    if min(stds) <= 0:
        raise ValueError(f"std must be positive, got {std}")
    first, second = _views(images, weak, strong, means, stds, dtype, size, impl=impl)
    return first, None if strong is None else second


def _statistic(name: str, value: Statistic, channels: int) -> list[float]:
    if isinstance(value, int | float):
        return [float(value)] * channels
    if len(value) != channels:
        raise ValueError(f"{name} must be a number or one per channel ({channels}), got {value}")
    return [float(v) for v in value]


def _fitted(
    images: Tensor, dtype: torch.dtype, size: Size, channels: int | None
) -> tuple[Tensor, tuple[int, int]]:
    """Check the images; return them with the channels of their views, and the views' height and width."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"images must be [N, C, H, W] with C 1 or 3 and H, W >= 1, got shape {tuple(images.shape)}"
        )
    if images.dtype not in IMAGE_DTYPES:
        raise ValueError(f"images must be uint8 or floating-point in [-1, 1], got {images.dtype}")
    if dtype not in OUTPUT_DTYPES:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    if size is None and channels is None:
        return images, (images.shape[2], images.shape[3])
    form = (images.shape[1], images.shape[2], images.shape[3])
    channels, height, width = asked_form(form, size, channels)
    return resized(images, channels, *form[1:]), (height, width)
