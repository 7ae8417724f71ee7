"""What `views` draws: addressing by seed and sample, the ranges of a spec, and rejected arguments."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from helpers.view_cases import FULL, image_batch
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.views import (
    ViewParameters,
    ViewSpec,
    apply_views,
    view_parameters,
    view_preset,
    views,
)

IMPLS = ["reference", "cpu"]


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    reason = dispatch.why_not("views", request.param, "cpu")
    if reason:
        pytest.skip(reason)
    return request.param


# Addressing ----------------------------------------------------------------------------------------------------------


def test_any_split_gives_the_same_bits(impl: str) -> None:
    images = image_batch(13, 3, 17, 14)
    weak, strong = views(images, FULL, view_preset("rand-augment"), seed=3, start=100, impl=impl)
    assert strong is not None
    for cuts in ([0, 13], [0, 1, 13], [0, 5, 6, 11, 13]):
        for a, b in itertools.pairwise(cuts):
            w, s = views(
                images[a:b], FULL, view_preset("rand-augment"), seed=3, start=100 + a, impl=impl
            )
            assert s is not None
            assert torch.equal(w, weak[a:b])
            assert torch.equal(s, strong[a:b])


def test_index_addresses_as_start_does(impl: str) -> None:
    images = image_batch(6, 1, 12, 12)
    order = torch.tensor([4, 0, 5, 3, 1, 2])
    expected = views(images, FULL, FULL, seed=3, start=50, impl=impl)
    actual = views(images[order], FULL, FULL, seed=3, index=50 + order, impl=impl)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e[order])


def test_weak_does_not_depend_on_strong(impl: str) -> None:
    images = image_batch(4, 3, 12, 12)
    alone, none = views(images, FULL, seed=3, impl=impl)
    beside, strong = views(images, FULL, FULL, seed=3, impl=impl)
    assert none is None
    assert torch.equal(alone, beside)
    assert not torch.equal(beside, strong)


def test_views_are_their_parameters_applied(impl: str) -> None:
    images = image_batch(5, 3, 12, 20)
    size = {"channels": 3, "height": 12, "width": 20, "seed": 8, "start": 2, "impl": impl}
    weak, strong = (view_parameters(FULL, 5, view=v, **size) for v in ("weak", "strong"))  # type: ignore[arg-type]
    for a, e in zip(
        apply_views(images, weak, strong, impl=impl),
        views(images, FULL, FULL, seed=8, start=2, impl=impl),
        strict=True,
    ):
        assert torch.equal(a, e)


def test_seeds_and_samples_differ() -> None:
    size = {"channels": 1, "height": 28, "width": 28}
    first = view_parameters(FULL, 8, seed=0, **size).packed
    other = view_parameters(FULL, 8, seed=1, **size).packed
    assert (first[:, 0] != other[:, 0]).all()
    assert len(first[:, 0].unique()) == 8


# What the spec says is what is drawn ---------------------------------------------------------------------------------


def values_of(spec: ViewSpec, num: int = 4000, channels: int = 3, view: str = "weak") -> Tensor:
    size = {"channels": channels, "height": 40, "width": 20}
    return view_parameters(spec, num, seed=1, view=view, **size).packed.double()  # type: ignore[arg-type]


def test_ranges_of_single_operations() -> None:
    shift = values_of(ViewSpec(translate=0.25))
    assert shift[:, 2].abs().max() <= 5
    assert shift[:, 2].std() == pytest.approx(10 / 12**0.5, rel=0.05)
    assert shift[:, 5].std() == pytest.approx(20 / 12**0.5, rel=0.05)
    turn = values_of(ViewSpec(rotate=90))
    angle = torch.rad2deg(torch.atan2(turn[:, 1], turn[:, 0]))
    assert angle.abs().max() <= 90
    assert angle.std() == pytest.approx(180 / 12**0.5, rel=0.05)
    zoom = 1 / values_of(ViewSpec(scale=(0.5, 2.0)))[:, 0]
    assert (zoom.min() >= 0.5 - 1e-6) & (zoom.max() <= 2.0 + 1e-6)
    assert zoom.mean() == pytest.approx(1.25, rel=0.02)
    flips = values_of(ViewSpec(flip=0.3))[:, 0]
    assert (flips == -1).double().mean() == pytest.approx(0.3, abs=0.03)
    levels = values_of(ViewSpec(posterize=6))[:, 18]
    assert set(levels.unique().tolist()) == {0.0, 64.0, 128.0}
    threshold = values_of(ViewSpec(solarize=0.5))[:, 19]
    assert (threshold.min() >= 0.5) & (threshold.max() <= 1.0)
    cut = values_of(ViewSpec(cutout=0.5))
    assert (cut[:, 22] == 10).all()
    assert (cut[:, 20].min() == -5) & (cut[:, 20].max() == 34)
    assert (cut[:, 21].min() == -5) & (cut[:, 21].max() == 14)


def test_num_ops_chooses_so_many_different_operations() -> None:
    spec = ViewSpec(
        translate=0.2, scale=(0.5, 0.9), brightness=0.5, contrast=0.5, solarize=0.5, num_ops=2
    )
    p = values_of(spec)
    # Contrast alone has an offset; brightness alone has a factor without the corresponding offset.
    scaled, shifted, contrast = p[:, 0] != 1, p[:, 2] != 0, p[:, 9] != 0
    bright = (p[:, 6] + 2 * p[:, 9] - 1).abs() > 1e-6
    applied = torch.stack([shifted, scaled, bright, contrast, p[:, 19] <= 1], dim=1)
    assert (applied.sum(1) == 2).all()
    share = applied.double().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 2 / 5), atol=0.03, rtol=0)
    pairs = {tuple(row.nonzero().flatten().tolist()) for row in applied}
    assert pairs == set(itertools.combinations(range(5), 2))


def test_grey_images_draw_from_what_acts_on_them() -> None:
    spec = ViewSpec(saturation=0.5, hue=0.2, brightness=0.5, translate=0.2, num_ops=1)
    p = values_of(spec, channels=1)
    assert ((p[:, 6] != 1) ^ (p[:, 2] != 0)).all()


def test_magnitude_scales_every_range() -> None:
    half = dataclasses.replace(FULL, magnitude=0.5)
    by_hand = dataclasses.replace(
        FULL, translate=0.15, rotate=15.0, scale=(0.9, 1.125), shear=8.5, brightness=0.45, contrast=0.45,
        saturation=0.45, hue=0.1, posterize=6, solarize=0.2,
    )  # fmt: skip
    assert torch.equal(values_of(half), values_of(by_hand))


def test_the_default_changes_nothing(impl: str) -> None:
    images = image_batch(3, 3, 10, 9)
    weak, strong = views(images, ViewSpec(), ViewSpec(), seed=0, impl=impl)
    torch.testing.assert_close(weak, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(strong, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", 1.5),
        ("translate", -0.1),
        ("rotate", 181),
        ("scale", (1.2, 0.8)),
        ("scale", 1.1),
        ("scale", (0.0, 1.0)),
        ("shear", 90),
        ("brightness", "much"),
        ("hue", 0.6),
        ("posterize", 0),
        ("posterize", 4.5),
        ("solarize", float("nan")),
        ("cutout", 2),
        ("num_ops", 1),
        ("magnitude", 0.5),
        ("fill", -2),
    ],
)
def test_bad_specs_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        ViewSpec(**{field: value})  # type: ignore[arg-type]


def test_bad_calls_are_named() -> None:
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="C 1 or 3"):
        views(torch.zeros(2, 4, 8, 8), ViewSpec(), seed=0)
    with pytest.raises(ValueError, match="uint8 or floating"):
        views(images.long(), ViewSpec(), seed=0)
    with pytest.raises(ValueError, match="one per channel"):
        views(images, ViewSpec(), seed=0, mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="std must be positive"):
        views(images, ViewSpec(), seed=0, std=0.0)
    with pytest.raises(ValueError, match="give only one of them"):
        views(images, ViewSpec(), seed=0, start=3, index=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"int64 of shape \[2\]"):
        views(images, ViewSpec(), seed=0, index=torch.tensor([1]))
    with pytest.raises(ValueError, match="parameters are for 3 images"):
        apply_views(images, ViewParameters.compose(3, 3))
    with pytest.raises(ValueError, match="unknown view preset 'strnog'"):
        view_preset("strnog")
    with pytest.raises(dispatch.ImplementationError, match="float32"):
        views(images.double(), ViewSpec(), seed=0, impl="cpu")
