"""`views` against eager PyTorch, torch.compile, torchvision v2 and kornia. float32 in and out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from registry import Case, Work
from torch import Tensor

from ptgm_fast.kernels.views import ViewSpec, apply_views, reference, view_parameters, views

Shape = tuple[int, int, int, int]
SIZES: list[Shape] = [(128, 1, 28, 28), (128, 3, 32, 32), (64, 3, 128, 128)]
WEAK = ViewSpec(flip=0.5, translate=0.125)
# The shape of a generator's images, and the side of the target network's.
RESIZED: list[tuple[Shape, int]] = [
    ((128, 1, 28, 28), 32),
    ((128, 3, 32, 32), 64),
    ((64, 3, 128, 128), 32),
]
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
Both = Callable[[Tensor], tuple[Tensor, Tensor]]


def batch(shape: Shape, device: torch.device) -> Tensor:
    torch.manual_seed(0)
    images = (torch.rand(shape) * 2 - 1).to(device)
    return images.contiguous(memory_format=torch.channels_last)


def given_parameters(shape: Shape, device: torch.device) -> Work:
    """Two views with given parameters: the work on pixels alone."""
    images = batch(shape, device)
    num, channels, height, width = shape
    size: dict[str, Any] = {"channels": channels, "height": height, "width": width, "seed": 0}
    weak = view_parameters(WEAK, num, view="weak", device=device, **size)
    strong = view_parameters(STRONG, num, view="strong", device=device, **size)
    statistics = [0.5] * channels

    def eager() -> tuple[Tensor, Tensor]:
        return reference.views(
            images,
            weak.packed,
            strong.packed,
            statistics,
            statistics,
            torch.float32,
            (height, width),
        )

    def check(contender: str, found: tuple[Tensor, Tensor]) -> None:
        for ours, theirs in zip(found, eager(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)

    calls = {
        "fused": lambda: apply_views(images, weak, strong),
        "compile": torch.compile(eager),
        "eager": eager,
    }
    return Work(calls, check)


def given_parameters_at_another_size(shape: Shape, side: int, device: torch.device) -> Work:
    """Two views of a different size than their images, with the resize inside or before the op."""
    images = batch(shape, device)
    num, channels = shape[:2]
    size: dict[str, Any] = {"channels": channels, "height": side, "width": side, "seed": 0}
    weak = view_parameters(WEAK, num, view="weak", device=device, **size)
    strong = view_parameters(STRONG, num, view="strong", device=device, **size)
    statistics, square = [0.5] * channels, (side, side)
    shrinks = side < shape[-1]

    def resized() -> Tensor:
        return F.interpolate(images, square, mode="bilinear", antialias=shrinks)

    def eager() -> tuple[Tensor, Tensor]:
        return reference.views(
            resized() if shrinks else images,
            weak.packed,
            strong.packed,
            statistics,
            statistics,
            torch.float32,
            square,
        )

    def check(contender: str, found: tuple[Tensor, Tensor]) -> None:
        twice = contender == "interpolate, fused" and not shrinks
        for ours, theirs in zip(found, eager(), strict=True):
            if twice:
                # Sampling noise bilinearly twice in a row gives smoother images than once.
                assert (ours - theirs).abs().mean() < 0.15
            else:
                torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)

    calls = {
        "fused": lambda: apply_views(images, weak, strong, size=side),
        "interpolate, fused": lambda: apply_views(resized(), weak, strong),
        "compile": torch.compile(eager),
        "eager": eager,
    }
    return Work(calls, check)


def drawn_parameters(shape: Shape, device: torch.device) -> Work:
    """Two views including their random parameters, as a training step computes them."""
    images = batch(shape, device)
    kornia, torchvision = kornia_views(shape[1], device), torchvision_views(shape[1])

    def check(contender: str, found: tuple[Tensor, Tensor]) -> None:
        if contender == "fused":
            expected = views(images, WEAK, STRONG, seed=0, impl="reference")
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
        for view in found:
            assert view.shape == shape
            assert view.isfinite().all()

    calls = {
        "fused": lambda: views(images, WEAK, STRONG, seed=0),
        "kornia": lambda: kornia(images),
        "torchvision": lambda: torchvision(images),
    }
    return Work(calls, check)


def torchvision_views(channels: int) -> Both:
    """The same operations image by image: torchvision's transforms draw one value for all images of a batch."""
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    normalize = v2.Normalize([0.5] * channels, [0.5] * channels)
    affine: dict[str, Any] = {"interpolation": bilinear, "translate": (0.125, 0.125)}
    weak = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomAffine(0, **affine), normalize])
    strong = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(30, scale=(0.8, 1.25), shear=15, **affine),
            v2.ColorJitter(0.4, 0.4, 0.4 if channels == 3 else 0.0),
            v2.RandomErasing(1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
            normalize,
        ]
    )

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        unit = (images + 1) / 2
        return torch.stack([weak(u) for u in unit]), torch.stack([strong(u) for u in unit])

    return both


def kornia_views(channels: int, device: torch.device) -> Both:
    """The same operations on the batch, parameters drawn per sample."""
    from kornia import augmentation

    half = torch.full((channels,), 0.5, device=device)
    normalize = augmentation.Normalize(half, half)
    weak = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomAffine(0.0, translate=(0.125, 0.125), p=1.0),
        normalize,
    )
    colors = (
        augmentation.ColorJiggle(0.4, 0.4, 0.4, p=1.0)
        if channels == 3
        else augmentation.RandomBrightness((0.6, 1.4), p=1.0)
    )
    strong = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.RandomAffine(30.0, (0.125, 0.125), (0.8, 1.25), 15.0, p=1.0),
        colors,
        augmentation.RandomErasing((0.25, 0.25), (1.0, 1.0), p=1.0),
        normalize,
    )

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        unit = (images + 1) / 2
        return weak(unit), strong(unit)

    return both


def name(shape: Shape) -> str:
    return "x".join(map(str, shape))


CASES = [
    *(
        Case(
            f"two views, given parameters, {name(shape)}",
            "kernels",
            ("fused", "compile", "eager"),
            partial(given_parameters, shape),
            calls=30,
            warmup=5,
            on_gpu=("fused", "compile", "eager"),
        )
        for shape in SIZES
    ),
    *(
        Case(
            f"two views of side {side}, given parameters, {name(shape)}",
            "kernels",
            ("fused", "interpolate, fused", "compile", "eager"),
            partial(given_parameters_at_another_size, shape, side),
            calls=30,
            warmup=5,
            on_gpu=("fused", "interpolate, fused", "compile", "eager"),
        )
        for shape, side in RESIZED
    ),
    *(
        Case(
            f"two random views, {name(shape)}",
            "kernels",
            ("fused", "kornia", "torchvision"),
            partial(drawn_parameters, shape),
            calls=12,
            warmup=2,
            on_gpu=("fused", "kornia"),
        )
        for shape in SIZES
    ),
]
