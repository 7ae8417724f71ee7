"""`views`: its steps against torchvision, its addressing, and every implementation against the reference."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.views import PRESETS, ViewParameters, ViewSpec, apply_views, view_parameters, view_preset, views

IMPLS = ["reference", "cpu"]
FULL = dataclasses.replace(view_preset("rand-augment"), num_ops=0, hue=0.2, posterize=3, solarize=0.4)
WARPED = {"rotate": 33.0, "translate_x": 3.0, "translate_y": -2.0, "scale": 1.2, "shear": 12.0}


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    reason = dispatch.why_not("views", request.param, "cpu")
    if reason:
        pytest.skip(reason)
    return request.param


def image_batch(num: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(num + 7 * channels + 11 * height + 13 * width)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (num, channels, height, width), dtype=dtype)
    return (torch.rand(num, channels, height, width) * 2 - 1).to(dtype)


def on_unit(images: Tensor, impl: str, **values: float) -> Tensor:
    """One view with the same given values for each image, without normalisation."""
    parameters = ViewParameters.compose(len(images), images.shape[1], **values)  # type: ignore[arg-type]
    return apply_views(images, parameters, mean=0.0, std=1.0, impl=impl)[0]


# Against torchvision, which nobody here wrote -----------------------------------------------------------------------


class TestAgainstTorchvision:
    """Where a definition differs from torchvision's, the test's name and comment say how and why."""

    @pytest.fixture
    def functional(self):  # type: ignore[no-untyped-def]
        return pytest.importorskip("torchvision.transforms.v2.functional")

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        "values",
        [
            {"rotate": 30.0},
            {"rotate": -170.0},
            {"translate_x": 3.0, "translate_y": -4.0},
            {"scale": 1.4},
            {"scale": 0.6},
            {"shear": 25.0},
            WARPED,
        ],
        ids=lambda v: "-".join(v),
    )
    def test_affine(self, functional, impl: str, channels: int, values: dict[str, float]) -> None:
        from torchvision.transforms import InterpolationMode

        images = image_batch(3, channels, 21, 30)
        expected = functional.affine(
            (images + 1) / 2,
            values.get("rotate", 0.0),
            [values.get("translate_x", 0.0), values.get("translate_y", 0.0)],
            values.get("scale", 1.0),
            [values.get("shear", 0.0), 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=2e-5, rtol=0)

    def test_flip_comes_before_the_affine_map(self, functional, impl: str) -> None:
        from torchvision.transforms import InterpolationMode

        images = image_batch(2, 3, 16, 19)
        flipped = functional.horizontal_flip((images + 1) / 2)
        expected = functional.affine(
            flipped, 20.0, [2.0, 1.0], 1.1, [5.0, 0.0], interpolation=InterpolationMode.BILINEAR
        )
        values = {"flip": 1.0, "rotate": 20.0, "translate_x": 2.0, "translate_y": 1.0, "scale": 1.1, "shear": 5.0}
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=2e-5, rtol=0)

    def test_fill_is_the_image_continued(self, functional, impl: str) -> None:
        # torchvision multiplies by its bilinear mask twice at the border, which darkens a seam. Here the image is
        # continued by the fill: the same as warping a padded image and cropping it.
        from torchvision.transforms import InterpolationMode

        images, pad = image_batch(2, 3, 12, 15), 20
        padded = F.pad((images + 1) / 2, (pad, pad, pad, pad), value=0.75)
        warped = functional.affine(padded, 40.0, [1.0, 2.0], 0.7, [10.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        expected = warped[..., pad:-pad, pad:-pad]
        values = {"rotate": 40.0, "translate_x": 1.0, "translate_y": 2.0, "scale": 0.7, "shear": 10.0, "fill": 0.5}
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=2e-5, rtol=0)

    @pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
    def test_brightness(self, functional, impl: str, factor: float) -> None:
        images = image_batch(2, 3, 9, 8)
        expected = functional.adjust_brightness((images + 1) / 2, factor)
        torch.testing.assert_close(on_unit(images, impl, brightness=factor), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
    def test_saturation(self, functional, impl: str, factor: float) -> None:
        # torchvision's luma weights are rounded to 0.2989, here 0.299: at most 1e-4 (factor - 1) apart.
        images = image_batch(2, 3, 9, 8)
        expected = functional.adjust_saturation((images + 1) / 2, factor)
        torch.testing.assert_close(on_unit(images, impl, saturation=factor), expected, atol=1.1e-4, rtol=0)

    @pytest.mark.parametrize("factor", [0.3, 1.6])
    def test_contrast_where_the_mean_is_mid_grey(self, functional, impl: str, factor: float) -> None:
        # torchvision's pivot is the mean luma of each image, which needs a second read of it; here it is mid-grey.
        # On images whose mean luma is mid-grey the two agree.
        half = image_batch(2, 3, 10, 8)
        images = torch.cat([half, -half], dim=2)
        expected = functional.adjust_contrast((images + 1) / 2, factor)
        torch.testing.assert_close(on_unit(images, impl, contrast=factor), expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("turn", [1 / 3, -1 / 3])
    def test_hue_at_thirds_of_a_turn(self, functional, impl: str, turn: float) -> None:
        # torchvision shifts the HSV hue, which is no linear map. The rotation about the grey axis equals it at thirds
        # of a turn, where both permute the channels.
        images = image_batch(2, 3, 9, 8)
        expected = functional.adjust_hue((images + 1) / 2, turn)
        torch.testing.assert_close(on_unit(images, impl, hue=turn), expected, atol=1e-5, rtol=0)

    def test_hue_keeps_grey_and_mean(self, impl: str) -> None:
        images = image_batch(2, 3, 9, 8) * 0.3
        images[1] = images[1, :1]
        rotated = on_unit(images, impl, hue=0.17)
        torch.testing.assert_close(rotated.mean(1), ((images + 1) / 2).mean(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(rotated[1], (images[1] + 1) / 2, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("bits", [1, 4, 7])
    def test_posterize(self, functional, impl: str, bits: int) -> None:
        # On floats torchvision keeps floor(u 2^bits) / 2^bits, as here; on bytes it masks bits, which is the same
        # level on a scale of 255 instead of 256.
        images = image_batch(2, 3, 9, 8)
        unit = on_unit(images, impl)
        expected = functional.posterize(unit, bits)
        assert_mostly_close(on_unit(images, impl, posterize=bits), expected, atol=1e-6, share=0.0)
        levels = image_batch(2, 3, 9, 8, torch.uint8)
        kept = (on_unit(levels, impl, posterize=bits) * 2**bits).round()
        assert torch.equal(kept, (functional.posterize(levels, bits) >> (8 - bits)).float().contiguous())

    @pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
    def test_solarize(self, functional, impl: str, threshold: float) -> None:
        images = image_batch(2, 3, 9, 8)
        expected = functional.solarize(on_unit(images, impl), threshold)
        torch.testing.assert_close(on_unit(images, impl, solarize=threshold), expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("top", "left", "side"), [(2, 3, 4), (-2, 5, 4), (6, 6, 9), (0, 0, 0), (20, 0, 3)])
    def test_cutout(self, functional, impl: str, top: int, left: int, side: int) -> None:
        images = image_batch(2, 3, 9, 8)
        unit = on_unit(images, impl)
        box = (max(top, 0), max(left, 0), max(min(top + side, 9), 0), max(min(left + side, 8), 0))
        height, width = max(box[2] - box[0], 0), max(box[3] - box[1], 0)
        expected = unit
        if height and width:
            expected = functional.erase(unit, box[0], box[1], height, width, torch.full((3, 1, 1), 0.6))
        values = {"cutout_top": top, "cutout_left": left, "cutout_side": side, "fill": 0.2}
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=1e-6, rtol=0)

    def test_normalize(self, functional, impl: str) -> None:
        images = image_batch(2, 3, 9, 8, torch.uint8)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        expected = functional.normalize(images / 255, mean, std)
        actual, _ = views(images, ViewSpec(), seed=0, mean=mean, std=std, impl=impl)
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)


def assert_mostly_close(actual: Tensor, expected: Tensor, *, atol: float, share: float) -> None:
    """All but a share of the values agree: posterize and solarize turn a rounding error at a threshold into a jump."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).abs()
    far = (error > atol).double().mean().item() if error.numel() else 0.0
    assert far <= share, f"{far:.2%} of the values differ by more than {atol}, at most {error.max():.3g}"


# Implementations against the reference -------------------------------------------------------------------------------


def both_parameters(num: int, channels: int, height: int, width: int, spec: ViewSpec) -> list[ViewParameters]:
    size = {"channels": channels, "height": height, "width": width}
    return [view_parameters(spec, num, seed=5, view=view, impl="reference", **size) for view in ("weak", "strong")]  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    source=st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.float16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["contiguous", "channels-last", "strided"]),
    preset=st.sampled_from(["none", "weak", "strong", "flip-shift"]),
)
def test_cpu_equals_the_reference(
    num: int,
    channels: int,
    height: int,
    width: int,
    source: torch.dtype,
    dtype: torch.dtype,
    layout: str,
    preset: str,
) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(num, channels, height, width, source)
    if layout == "channels-last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=3)[..., ::2]
    weak, strong = both_parameters(num, channels, height, width, view_preset(preset))
    options = {"mean": 0.4, "std": 0.3, "dtype": dtype}
    actual = apply_views(images, weak, strong, impl="cpu", **options)  # type: ignore[arg-type]
    expected = apply_views(images, weak, strong, impl="reference", **options)  # type: ignore[arg-type]
    # Between neighbouring pixels a float32 coordinate error of the size's rounding counts up to 2 / std.
    atol = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert a.is_contiguous(memory_format=torch.channels_last)
        assert_mostly_close(a, e, atol=atol, share=0.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pointwise_steps_equal_the_reference(impl: str, channels: int) -> None:
    images = image_batch(32, channels, 32, 32)
    weak, strong = both_parameters(32, channels, 32, 32, FULL)
    actual = apply_views(images, weak, strong, impl=impl)
    expected = apply_views(images, weak, strong, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert_mostly_close(a, e, atol=1e-4, share=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_worse_than_twice_plain_pytorch(dtype: torch.dtype) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(16, 3, 48, 48)
    spec = ViewSpec(rotate=30, scale=(0.7, 1.4), shear=20, brightness=0.5, saturation=0.5, hue=0.2)
    weak, _ = both_parameters(16, 3, 48, 48, spec)
    exact = apply_views(images.double(), weak, dtype=torch.float64, impl="reference")[0]
    plain = apply_views(images, weak, dtype=dtype, impl="reference")[0]
    ours = apply_views(images, weak, dtype=dtype, impl="cpu")[0]
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", [*PRESETS, "full"])
def test_drawn_parameters_equal_the_reference(impl: str, channels: int, preset: str) -> None:
    spec = FULL if preset == "full" else view_preset(preset)
    size = {"channels": channels, "height": 28, "width": 45}
    actual = view_parameters(spec, 300, seed=9, start=11, impl=impl, **size).packed
    expected = view_parameters(spec, 300, seed=9, start=11, impl="reference", **size).packed
    # What decides (bits, cutout, which operations) must not differ at all.
    assert torch.equal(actual[:, [18, 20, 21, 22, 23]], expected[:, [18, 20, 21, 22, 23]])
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=2e-7)


def test_nan_is_not_hidden(impl: str) -> None:
    for channels in (1, 3):
        images = torch.full((1, channels, 5, 5), float("nan"))
        for spec in (ViewSpec(), FULL):
            weak, _ = views(images, dataclasses.replace(spec, cutout=0.0), seed=0, impl=impl)
            assert weak[0, :, 2, 2].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_senseless_geometry_stays_inside_the_image(bad: float) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(2, 3, 6, 7)
    for column in (*range(6), 20, 21, 22):
        parameters = ViewParameters.compose(2, 3)
        parameters.packed[:, column] = bad
        weak, _ = apply_views(images, parameters, impl="cpu")
        assert ((weak >= -1 - 1e-6) & (weak <= 1 + 1e-6)).all()


# Addressing ----------------------------------------------------------------------------------------------------------


def test_any_split_gives_the_same_bits(impl: str) -> None:
    images = image_batch(13, 3, 17, 14)
    weak, strong = views(images, FULL, view_preset("rand-augment"), seed=3, start=100, impl=impl)
    assert strong is not None
    for cuts in ([0, 13], [0, 1, 13], [0, 5, 6, 11, 13]):
        for a, b in zip(cuts, cuts[1:], strict=False):
            w, s = views(images[a:b], FULL, view_preset("rand-augment"), seed=3, start=100 + a, impl=impl)
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
        apply_views(images, weak, strong, impl=impl), views(images, FULL, FULL, seed=8, start=2, impl=impl), strict=True
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
    spec = ViewSpec(translate=0.2, rotate=30, brightness=0.5, posterize=2, solarize=0.5, num_ops=2)
    p = values_of(spec)
    applied = torch.stack(
        [p[:, 2] != 0, p[:, 1] != 0, p[:, 6] != 1, p[:, 18] > 0, p[:, 19] <= 1], dim=1
    )
    # A rotated shift has all of the affine map; 8 bits, one of seven draws of posterize, change nothing.
    rotated_only = applied[:, 1] & ~torch.isclose(p[:, 2].abs() + p[:, 5].abs(), torch.zeros(1, dtype=torch.float64))
    assert rotated_only.any()
    share = applied[:, [1, 2, 4]].double().mean(0)
    torch.testing.assert_close(share, torch.full((3,), 2 / 5, dtype=torch.float64), atol=0.03, rtol=0)
    assert applied.sum(1).max() == 2


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
    with pytest.raises(ValueError, match="one a channel"):
        views(images, ViewSpec(), seed=0, mean=(0.5, 0.5))
    with pytest.raises(ValueError, match="std must be positive"):
        views(images, ViewSpec(), seed=0, std=0.0)
    with pytest.raises(ValueError, match="give one of them"):
        views(images, ViewSpec(), seed=0, start=3, index=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"int64 of shape \[2\]"):
        views(images, ViewSpec(), seed=0, index=torch.tensor([1]))
    with pytest.raises(ValueError, match="parameters are for 3 images"):
        apply_views(images, ViewParameters.compose(3, 3))
    with pytest.raises(ValueError, match="unknown view preset 'strnog'"):
        view_preset("strnog")
    with pytest.raises(ValueError, match="float64"):
        views(images.double(), ViewSpec(), seed=0, impl="cpu")


# torch.library -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(two: bool, requires_grad: bool) -> None:
    images = image_batch(2, 3, 6, 5).requires_grad_(requires_grad)
    weak, strong = both_parameters(2, 3, 6, 5, FULL)
    arguments = (images, weak.packed, strong.packed if two else None, [0.5] * 3, [0.5] * 3, torch.float32, "")
    torch.library.opcheck(torch.ops.ptgm_fast.views.default, arguments)
    numbers = torch.rand(4, 24)
    spec_ranges = kernels.views.__globals__["ranges"](FULL, 3)
    torch.library.opcheck(torch.ops.ptgm_fast.view_parameters.default, (numbers, spec_ranges, 3, 6, 5, ""))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradcheck(channels: int) -> None:
    # Values well inside (0, 1) and no posterize: the gradient of a clipped or rounded value is zero, not a limit.
    images = (image_batch(2, channels, 4, 5).double() * 0.5).requires_grad_()
    spec = ViewSpec(rotate=30, scale=(0.8, 1.2), brightness=0.2, saturation=0.2, hue=0.1, cutout=0.3)
    weak, strong = both_parameters(2, channels, 4, 5, spec)

    def both(x: Tensor) -> tuple[Tensor, Tensor | None]:
        return apply_views(x, weak, strong, dtype=torch.float64)

    assert torch.autograd.gradcheck(both, (images,))


def test_the_gradient_of_the_fast_path_is_the_reference_s(impl: str) -> None:
    images = image_batch(3, 3, 9, 8)
    grads = []
    for name in (impl, "reference"):
        leaf = images.clone().requires_grad_()
        weak, strong = views(leaf, FULL, view_preset("strong"), seed=1, impl=name)
        assert strong is not None
        (weak.square().sum() + strong.sum()).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-3)


def test_one_graph() -> None:
    def step(x: Tensor) -> Tensor:
        weak, strong = views(x, view_preset("weak"), view_preset("strong"), seed=4, start=6)
        assert strong is not None
        return weak.sum(dim=(1, 2, 3)) + strong.sum(dim=(1, 2, 3))

    images = image_batch(3, 1, 8, 8)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), step(images))


def test_thread_count_changes_nothing() -> None:
    images = image_batch(9, 3, 33, 21)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(views(images, FULL, FULL, seed=2, impl="cpu"))
    finally:
        torch.set_num_threads(before)
    for weak, strong in results[1:]:
        assert torch.equal(weak, results[0][0])
        assert torch.equal(strong, results[0][1])
