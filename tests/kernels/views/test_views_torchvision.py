"""The steps of `views` against an independent implementation, torchvision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.view_cases import assert_mostly_close, image_batch
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.views import (
    ViewParameters,
    ViewSpec,
    apply_views,
    views,
)

WARPED = {"rotate": 33.0, "translate_x": 3.0, "translate_y": -2.0, "scale": 1.2, "shear": 12.0}

IMPLS = ["reference", "cpu"]


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    reason = dispatch.why_not("views", request.param, "cpu")
    if reason:
        pytest.skip(reason)
    return request.param


def on_unit(images: Tensor, impl: str, **values: float) -> Tensor:
    """One view with the same given values for each image, without normalization."""
    parameters = ViewParameters.compose(len(images), images.shape[1], **values)  # type: ignore[arg-type]
    return apply_views(images, parameters, mean=0.0, std=1.0, impl=impl)[0]


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
        values = {
            "flip": 1.0,
            "rotate": 20.0,
            "translate_x": 2.0,
            "translate_y": 1.0,
            "scale": 1.1,
            "shear": 5.0,
        }
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=2e-5, rtol=0)

    def test_fill_is_the_image_continued(self, functional, impl: str) -> None:
        # torchvision multiplies by its bilinear mask twice at the border, which darkens a seam. Here, the image is
        # padded with the fill, which is the same as warping a padded image and cropping it.
        from torchvision.transforms import InterpolationMode

        images, pad = image_batch(2, 3, 12, 15), 20
        padded = F.pad((images + 1) / 2, (pad, pad, pad, pad), value=0.75)
        warped = functional.affine(
            padded, 40.0, [1.0, 2.0], 0.7, [10.0, 0.0], interpolation=InterpolationMode.BILINEAR
        )
        expected = warped[..., pad:-pad, pad:-pad]
        values = {
            "rotate": 40.0,
            "translate_x": 1.0,
            "translate_y": 2.0,
            "scale": 0.7,
            "shear": 10.0,
            "fill": 0.5,
        }
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=2e-5, rtol=0)

    @pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
    def test_brightness(self, functional, impl: str, factor: float) -> None:
        images = image_batch(2, 3, 9, 8)
        expected = functional.adjust_brightness((images + 1) / 2, factor)
        torch.testing.assert_close(
            on_unit(images, impl, brightness=factor), expected, atol=1e-5, rtol=0
        )

    @pytest.mark.parametrize("factor", [0.0, 0.4, 1.7])
    def test_saturation(self, functional, impl: str, factor: float) -> None:
        # torchvision's luma weights are rounded to 0.2989, here 0.299: at most 1e-4 (factor - 1) apart.
        images = image_batch(2, 3, 9, 8)
        expected = functional.adjust_saturation((images + 1) / 2, factor)
        torch.testing.assert_close(
            on_unit(images, impl, saturation=factor), expected, atol=1.1e-4, rtol=0
        )

    @pytest.mark.parametrize("factor", [0.3, 1.6])
    def test_contrast_where_the_mean_is_mid_grey(
        self, functional, impl: str, factor: float
    ) -> None:
        # torchvision's pivot is each image's mean luma, which requires reading the image twice; here it is mid-grey.
        # On images whose mean luma is mid-grey the two agree.
        half = image_batch(2, 3, 10, 8)
        images = torch.cat([half, -half], dim=2)
        expected = functional.adjust_contrast((images + 1) / 2, factor)
        torch.testing.assert_close(
            on_unit(images, impl, contrast=factor), expected, atol=1e-4, rtol=0
        )

    @pytest.mark.parametrize("turn", [1 / 3, -1 / 3])
    def test_hue_at_thirds_of_a_turn(self, functional, impl: str, turn: float) -> None:
        # torchvision shifts the HSV hue, which is not a linear map. The rotation about the grey axis equals it at thirds
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
        assert torch.equal(
            kept, (functional.posterize(levels, bits) >> (8 - bits)).float().contiguous()
        )

    @pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
    def test_solarize(self, functional, impl: str, threshold: float) -> None:
        images = image_batch(2, 3, 9, 8)
        expected = functional.solarize(on_unit(images, impl), threshold)
        torch.testing.assert_close(
            on_unit(images, impl, solarize=threshold), expected, atol=1e-6, rtol=0
        )

    @pytest.mark.parametrize(
        ("top", "left", "side"), [(2, 3, 4), (-2, 5, 4), (6, 6, 9), (0, 0, 0), (20, 0, 3)]
    )
    def test_cutout(self, functional, impl: str, top: int, left: int, side: int) -> None:
        images = image_batch(2, 3, 9, 8)
        unit = on_unit(images, impl)
        box = (max(top, 0), max(left, 0), max(min(top + side, 9), 0), max(min(left + side, 8), 0))
        height, width = max(box[2] - box[0], 0), max(box[3] - box[1], 0)
        expected = unit
        if height and width:
            expected = functional.erase(
                unit, box[0], box[1], height, width, torch.full((3, 1, 1), 0.6)
            )
        values = {"cutout_top": top, "cutout_left": left, "cutout_side": side, "fill": 0.2}
        torch.testing.assert_close(on_unit(images, impl, **values), expected, atol=1e-6, rtol=0)

    def test_normalize(self, functional, impl: str) -> None:
        images = image_batch(2, 3, 9, 8, torch.uint8)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        expected = functional.normalize(images / 255, mean, std)
        actual, _ = views(images, ViewSpec(), seed=0, mean=mean, std=std, impl=impl)
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)
