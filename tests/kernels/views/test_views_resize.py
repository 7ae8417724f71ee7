"""Views with another size or number of channels than their images: against torchvision, exact cases and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.view_cases import (
    FULL,
    assert_mostly_close,
    assert_one_graph,
    both_parameters,
    image_batch,
)
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.views import ViewParameters, ViewSpec, apply_views, view_preset, views

Side = tuple[int, int]
# Enlarging, shrinking, one of each, and sides of one pixel.
SIDES = [
    ((9, 11), (20, 31)),
    ((16, 16), (32, 32)),
    ((32, 31), (12, 9)),
    ((12, 30), (29, 7)),
    ((33, 8), (20, 8)),
    ((1, 1), (5, 4)),
    ((1, 9), (3, 4)),
    ((7, 6), (1, 1)),
]
WARPED = {"rotate": 33.0, "translate_x": 3.0, "translate_y": -2.0, "scale": 1.2, "shear": 12.0}


def need_the_extension() -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)


def plain(images: Tensor, impl: str, **options: Any) -> Tensor:
    """The identity view, in [0, 1]."""
    return views(images, ViewSpec(), seed=0, mean=0.0, std=1.0, impl=impl, **options)[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "size"), SIDES)
@pytest.mark.parametrize("source", [torch.float32, torch.uint8])
def test_equals_torchvision(
    impl: str, channels: int, side: Side, size: Side, source: torch.dtype
) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = image_batch(2, channels, *side, source)
    unit = images / 255 if source == torch.uint8 else (images + 1) / 2
    expected = functional.resize(unit, list(size), antialias=True)
    torch.testing.assert_close(plain(images, impl, size=size), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("height", [2, 5])
def test_one_pixel_wide(impl: str, height: int) -> None:
    # torch's own resize is wrong here; a column of a wide image with constant rows is right.
    images = image_batch(1, 1, 3, 1)
    expected = plain(images.repeat(1, 1, 1, 4), impl, size=(height, 4))[..., :1]
    torch.testing.assert_close(plain(images, impl, size=(height, 1)), expected)


@pytest.mark.parametrize("source", [torch.float32, torch.uint8, torch.bfloat16])
def test_the_images_own_size_changes_no_bit(impl: str, source: torch.dtype) -> None:
    images = image_batch(4, 3, 14, 14, source)
    expected = views(images, FULL, FULL, seed=3, impl=impl)
    for options in ({"size": 14}, {"size": (14, 14)}, {"channels": 3, "size": 14}):
        actual = views(images, FULL, FULL, seed=3, impl=impl, **options)  # type: ignore[arg-type]
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    side=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    source=st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.float16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["contiguous", "channels-last", "strided", "repeated"]),
    preset=st.sampled_from(["none", "weak", "strong", "flip-shift"]),
)
def test_cpu_equals_the_reference_in_float64(
    num: int,
    channels: int,
    side: Side,
    size: Side,
    source: torch.dtype,
    dtype: torch.dtype,
    layout: str,
    preset: str,
) -> None:
    need_the_extension()
    images = image_batch(num, channels, *side, source)
    if layout == "channels-last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=3)[..., ::2]
    elif layout == "repeated":
        images = images[:, :1].expand(-1, channels, -1, -1)
    exact = images.double() / 127.5 - 1 if source == torch.uint8 else images.double()
    weak, strong = both_parameters(num, channels, *size, view_preset(preset))
    options: dict[str, Any] = {"mean": 0.4, "std": 0.3, "size": size}
    actual = apply_views(images, weak, strong, dtype=dtype, impl="cpu", **options)
    expected = apply_views(exact, weak, strong, dtype=torch.float64, impl="reference", **options)
    atol = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert a.is_contiguous(memory_format=torch.channels_last)
        # The edge of the cutout does not depend on the input: only rounding differs.
        assert_mostly_close(a, e.to(dtype), atol=atol, share=0.0)


@settings(max_examples=40, deadline=None)
@given(
    side=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    flip=st.integers(0, 1),
    shift=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    cutout=st.tuples(st.integers(-3, 9), st.integers(-3, 9), st.integers(0, 8)),
    fill=st.floats(-1, 1),
)
def test_whole_pixels_of_a_view_are_those_of_the_resized_image(
    side: Side, size: Side, flip: int, shift: Side, cutout: tuple[int, int, int], fill: float
) -> None:
    # Flips and shifts by whole pixels sample the resized image at its pixels: both ways agree, including the fill.
    images = image_batch(2, 3, *side).double()
    values = {"flip": flip, "translate_x": shift[0], "translate_y": shift[1], "contrast": 0.7}
    names = ("cutout_top", "cutout_left", "cutout_side")
    parameters = ViewParameters.compose(
        2, 3, **values, **dict(zip(names, cutout, strict=True)), fill=fill, hue=0.1
    )
    options: dict[str, Any] = {"dtype": torch.float64, "impl": "reference"}
    resized, _ = apply_views(images, ViewParameters.compose(2, 3), size=size, **options)
    expected, _ = apply_views(resized, parameters, **options)
    actual, _ = apply_views(images, parameters, size=size, **options)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(24, 31), (12, 20), (12, 21)])
def test_any_map_samples_a_ramp_where_it_says(impl: str, size: Side) -> None:
    # Bilinear samples of a linear image are exact at any position between pixel centres.
    height, width = 12, 20
    ramp = torch.linspace(-0.55, 0.55, height)[:, None] + torch.linspace(-0.35, 0.35, width)
    parameters = ViewParameters.compose(1, 1, **WARPED)
    ys, xs = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    at = torch.stack(torch.broadcast_tensors(xs, ys[:, None], torch.ones(())), dim=-1)
    x, y = (at @ parameters.affine[0].double().T).unbind(-1)
    x, y = x * (width / size[1]), y * (height / size[0])
    inside = (x.abs() < (width - 1) / 2) & (y.abs() < (height - 1) / 2)
    expected = y * (1.1 / (height - 1)) + x * (0.7 / (width - 1))
    actual, _ = apply_views(ramp[None, None], parameters, size=size, impl=impl)
    assert inside.sum() > 100
    torch.testing.assert_close(actual[0, 0][inside].double(), expected[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(23, 37), (9, 6)])
def test_every_instruction_set(isa: str, channels: int, size: Side) -> None:
    need_the_extension()
    from ptgm_fast import _C

    images = image_batch(4, channels, 13, 17)
    weak, strong = both_parameters(4, channels, *size, FULL)
    before = _C.isa()
    try:
        _C.use_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        actual = apply_views(images, weak, strong, size=size, impl="cpu")
    finally:
        _C.use_isa(before)
    expected = apply_views(images, weak, strong, size=size, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert_mostly_close(a, e, atol=1e-4, share=2e-3)


@pytest.mark.parametrize("size", [(9, 12), (21, 5)])
def test_any_split_gives_the_same_bits(impl: str, size: Side) -> None:
    images = image_batch(5, 3, 15, 10)
    whole, _ = views(images, FULL, seed=3, size=size, impl=impl)
    parts = [
        views(images[a:b], FULL, seed=3, start=a, size=size, impl=impl)[0]
        for a, b in ((0, 1), (1, 1), (1, 5))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_senseless_geometry_stays_inside_the_image(bad: float) -> None:
    need_the_extension()
    images = image_batch(2, 3, 6, 7)
    for column in range(6):
        parameters = ViewParameters.compose(2, 3)
        parameters.packed[:, column] = bad
        weak, _ = apply_views(images, parameters, size=(13, 9), impl="cpu")
        assert ((weak >= -1 - 1e-6) & (weak <= 1 + 1e-6)).all()


# Channels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 19, 5])
def test_grey_images_become_colour_by_repetition(impl: str, size: int | None) -> None:
    images = image_batch(3, 1, 11, 8, torch.uint8)
    options: dict[str, Any] = {"seed": 1, "size": size, "mean": (0.3, 0.4, 0.5), "impl": impl}
    actual, _ = views(images, FULL, channels=3, **options)
    expected, _ = views(images.repeat(1, 3, 1, 1), FULL, **options)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("source", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [None, 19, 5])
def test_colour_images_become_grey_by_their_luma(
    impl: str, source: torch.dtype, size: int | None
) -> None:
    # torchvision's weights are rounded to 0.2989, here 0.299.
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    images = image_batch(3, 3, 11, 8, source)
    unit = images / 255 if source == torch.uint8 else (images.float() + 1) / 2
    expected = functional.rgb_to_grayscale(unit)
    if size is not None:
        expected = functional.resize(expected, [size, size], antialias=True)
    actual = plain(images, impl, channels=1, size=size)
    torch.testing.assert_close(actual, expected, atol=1.1e-4, rtol=0)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    images = image_batch(2, 1, 6, 5).requires_grad_(requires_grad)
    weak, strong = both_parameters(2, 1, 9, 3, FULL)
    arguments = (images, weak.packed, strong.packed, [0.5], [0.5], torch.float32, (9, 3), "")
    torch.library.opcheck(torch.ops.ptgm_fast.views.default, arguments)


@pytest.mark.parametrize(("channels", "made"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("size", [(7, 6), (2, 3)])
def test_gradcheck(channels: int, made: int, size: Side) -> None:
    images = (image_batch(1, channels, 4, 5).double() * 0.5).requires_grad_()
    weak, _ = both_parameters(1, made, *size, ViewSpec(rotate=30, brightness=0.2, cutout=0.3))

    def view(x: Tensor) -> Tensor:
        return apply_views(x, weak, size=size, channels=made, dtype=torch.float64)[0]

    assert torch.autograd.gradcheck(view, (images,))


@pytest.mark.parametrize("size", [(17, 12), (6, 5), (12, 5)])
@pytest.mark.parametrize(("channels", "made"), [(1, 3), (3, 1)])
def test_one_graph(size: Side, channels: int, made: int) -> None:
    def step(x: Tensor) -> Tensor:
        weak, strong = views(
            x.tanh(), view_preset("weak"), view_preset("strong"), seed=4, size=size, channels=made
        )
        assert strong is not None
        return (weak * strong).sum(dim=(1, 2, 3))

    images = image_batch(3, channels, 8, 6)
    assert_one_graph(step, images)


def test_bad_calls_are_named() -> None:
    images = torch.zeros(2, 3, 8, 8)
    for size in (0, (4, -1)):
        with pytest.raises(ValueError, match="size must be a side"):
            views(images, ViewSpec(), seed=0, size=size)
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        views(images, ViewSpec(), seed=0, channels=2)
    with pytest.raises(ValueError, match="C 1 or 3"):
        views(torch.zeros(2, 2, 8, 8), ViewSpec(), seed=0, channels=3)
    with pytest.raises(ValueError, match="parameters are for 2 images of 3 channels"):
        apply_views(images, ViewParameters.compose(2, 3), channels=1)
