"""`FastSampler` serves images of another size and with other channels than its generator makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ptgm_fast import FastSampler, generators, kernels
from ptgm_fast.generators import Generator
from ptgm_fast.kernels.views import view_preset
from ptgm_fast.sampling import FrozenGenerator, Recipe, derive_seed, memory_pool


@pytest.fixture(scope="module")
def generator(pair: Path) -> Generator:
    """Makes 1x8x8."""
    return generators.load(str(pair))


def served(source: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first 20 samples."""
    where = {"generator": source} if isinstance(source, Generator) else {"pool": source}
    with FastSampler(**where, **{"batch_size": 20, "seed": 2, **options}) as sampler:
        batches = list(sampler.uniform(-(-20 // options.get("batch_size", 20))))
    images = torch.cat([b.images for b in batches])[:20]
    return images, None if batches[0].strong is None else torch.cat([b.strong for b in batches])[
        :20
    ]


@pytest.mark.parametrize("image_size", [(13, 11), (5, 9), 6])
@pytest.mark.parametrize("channels", [None, 3])
def test_views_are_of_that_form(
    generator: Generator, image_size: Any, channels: int | None
) -> None:
    images, _ = served(generator)
    options: dict[str, Any] = {"image_size": image_size, "channels": channels}
    weak, strong = served(generator, views=("weak", "strong"), **options)
    expected = kernels.views(
        images,
        view_preset("weak"),
        view_preset("strong"),
        seed=derive_seed(2, "sampler/views"),
        size=image_size,
        channels=channels,
    )
    side = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    assert weak.shape == (20, channels or 1, *side)
    for a, e in zip((weak, strong), expected, strict=True):
        assert torch.equal(a, e)
    again, _ = served(generator, views=("weak", "strong"), batch_size=7, **options)
    assert torch.equal(again, weak)


@pytest.mark.parametrize("image_size", [12, (5, 9)])
def test_without_views_images_are_resized_alone(generator: Generator, image_size: Any) -> None:
    images, _ = served(generator)
    side = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    expected = F.interpolate(images, side, mode="bilinear", antialias=True)
    actual, _ = served(generator, image_size=image_size, channels=3)
    torch.testing.assert_close(actual, expected.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("views", [None, "weak"])
def test_the_generators_own_form_changes_nothing(generator: Generator, views: str | None) -> None:
    expected, _ = served(generator, views=views)
    actual, _ = served(generator, views=views, image_size=8, channels=1)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("views", [None, "weak"])
def test_a_pool_keeps_its_size_and_serves_another(generator: Generator, views: str | None) -> None:
    pool = memory_pool(Recipe(FrozenGenerator(generator), seed=1), 64)
    native, _ = served(pool)
    actual, _ = served(pool, views=views, image_size=11, channels=3)
    assert native.shape == (20, 1, 8, 8)
    assert actual.shape == (20, 3, 11, 11)
    if views is None:
        expected = F.interpolate(native, (11, 11), mode="bilinear", antialias=True)
        torch.testing.assert_close(actual, expected.expand(-1, 3, -1, -1))
    options = {"batch_size": 20, "seed": 2, "views": views, "image_size": 11, "channels": 3}
    image = FastSampler(pool=pool, **options).dataset()[3][0]
    assert image.shape == (3, 11, 11)


def test_mistakes(generator: Generator) -> None:
    with pytest.raises(ValueError, match="size must be a side"):
        FastSampler(generator, batch_size=4, image_size=0)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        FastSampler(generator, batch_size=4, channels=4)
