"""`views` against eager PyTorch, torch.compile, torchvision v2 and kornia.

pytest benchmarks/kernels/test_views.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ptgm_fast.kernels.views import ViewSpec, apply_views, reference, view_parameters, views

pytestmark = pytest.mark.usefixtures("kept_memory")

SIZES = [(128, 1, 28, 28), (128, 3, 32, 32), (64, 3, 128, 128)]
WEAK = ViewSpec(flip=0.5, translate=0.125)
STRONG = ViewSpec(
    flip=0.5,
    translate=0.125,
    rotate=30.0,
    scale=(0.8, 1.25),
    shear=15.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    cutout=0.5,
)


def batch(shape: tuple[int, int, int, int]) -> Tensor:
    return (torch.rand(shape) * 2 - 1).contiguous(memory_format=torch.channels_last)


def name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@pytest.mark.parametrize("shape", SIZES, ids=name)
@pytest.mark.parametrize("contender", ["fused", "compile", "eager"])
def test_given_parameters(
    benchmark: Any, threads: int, shape: tuple[int, int, int, int], contender: str
) -> None:
    """Two views with given parameters, float32 in and out: the work on pixels alone."""
    benchmark.group = f"two views, given parameters, {name(shape)}, {threads} threads"
    images = batch(shape)
    num, channels, height, width = shape
    size = {"channels": channels, "height": height, "width": width, "seed": 0}
    weak = view_parameters(WEAK, num, view="weak", **size)  # type: ignore[arg-type]
    strong = view_parameters(STRONG, num, view="strong", **size)  # type: ignore[arg-type]
    statistics = [0.5] * channels

    def eager() -> tuple[Tensor, Tensor]:
        return reference.views(
            images, weak.packed, strong.packed, statistics, statistics, torch.float32
        )

    functions: dict[str, Callable[[], Any]] = {
        "fused": lambda: apply_views(images, weak, strong),
        "eager": eager,
    }
    if contender == "compile":
        functions["compile"] = torch.compile(eager)
    for ours, theirs in zip(functions[contender](), eager(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    benchmark.pedantic(functions[contender], rounds=30, warmup_rounds=5)


def torchvision_views(channels: int, height: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same operations image by image: torchvision's transforms draw one value for all images of a batch."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    bilinear = v2.InterpolationMode.BILINEAR
    normalise = v2.Normalize([0.5] * channels, [0.5] * channels)
    affine = {"interpolation": bilinear, "translate": (0.125, 0.125)}
    weak = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(0, **affine), normalise])
    strong = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(30, scale=(0.8, 1.25), shear=15, **affine),
            v2.ColorJitter(0.4, 0.4, 0.4 if channels == 3 else 0.0),
            v2.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
            normalise,
        ]
    )

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        unit = (images + 1) / 2
        return torch.stack([weak(u) for u in unit]), torch.stack([strong(u) for u in unit])

    return both


def kornia_views(channels: int, height: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The same operations on the batch, parameters drawn per sample."""
    augmentation = pytest.importorskip("kornia.augmentation")
    half = torch.full((channels,), 0.5)
    normalise = augmentation.Normalize(half, half)
    weak = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomAffine(0.0, translate=(0.125, 0.125), p=1.0),
        normalise,
    )
    jitter = 0.4 if channels == 3 else 0.0
    strong = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomAffine(30.0, (0.125, 0.125), (0.8, 1.25), 15.0, p=1.0),
        augmentation.ColorJiggle(0.4, 0.4, jitter, p=1.0)
        if channels == 3
        else augmentation.RandomBrightness((0.6, 1.4), p=1.0),
        augmentation.RandomErasing((0.25, 0.25), (1.0, 1.0), p=1.0),
        normalise,
    )

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        unit = (images + 1) / 2
        return weak(unit), strong(unit)

    return both


@pytest.mark.parametrize("shape", SIZES, ids=name)
@pytest.mark.parametrize("contender", ["fused", "kornia", "torchvision"])
def test_drawn_parameters(
    benchmark: Any, threads: int, shape: tuple[int, int, int, int], contender: str
) -> None:
    """Two views with their random numbers, as a training step asks for them."""
    benchmark.group = f"two random views, {name(shape)}, {threads} threads"
    images = batch(shape)
    makers = {"kornia": kornia_views, "torchvision": torchvision_views}
    if contender == "fused":
        function: Callable[[Tensor], Any] = lambda x: views(x, WEAK, STRONG, seed=0)  # noqa: E731
        expected = views(images, WEAK, STRONG, seed=0, impl="reference")
        for ours, theirs in zip(function(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
    else:
        function = makers[contender](shape[1], shape[2])
        for view in function(images):
            assert view.shape == shape
            assert view.isfinite().all()
    benchmark.pedantic(lambda: function(images), rounds=12, warmup_rounds=2)
