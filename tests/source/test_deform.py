"""Each part of the deformation does what its option says, and nothing when it is zero."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ptgm_fast.training.source import DeformationOptions
from ptgm_fast.training.source.deform import deform, num_draws

STILL: dict[str, Any] = {
    "rotation": 0,
    "scale": (1, 1),
    "shear": 0,
    "translation": 0,
    "displacement": 0,
    "thicken": 0,
    "gain": 1,
}


def options(**changes: Any) -> DeformationOptions:
    return DeformationOptions(**{**STILL, **changes})


def draws_for(given: DeformationOptions, count: int, **uniforms: float) -> torch.Tensor:
    """Draws of zero (uniform 0.5, no displacement) but for the named uniforms."""
    names = ("rotation", "scale", "shear", "shift_x", "shift_y", "chosen", "mixture", "gain")
    draws = torch.zeros(count, num_draws(given))
    for name, value in uniforms.items():
        draws[:, names.index(name)] = torch.special.ndtri(
            torch.tensor(value, dtype=torch.float64)
        ).float()
    return draws


def dot(row: int, column: int, size: int = 9) -> torch.Tensor:
    image = torch.full((1, 1, size, size), -1.0)
    image[0, 0, row, column] = 1
    return image


def brightest(image: torch.Tensor) -> tuple[int, int]:
    row, column = divmod(int(image[0, 0].argmax()), image.shape[3])
    return row, column


def test_zeros_leave_images_alone() -> None:
    still = options()
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    out = deform(images, torch.randn(3, num_draws(still)), still)
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)


def test_rotation_by_a_quarter_turn() -> None:
    given = options(rotation=90)
    # The sampling grid turns by +90 degrees, so content at the right comes to the top.
    out = deform(dot(4, 8), draws_for(given, 1, rotation=1 - 1e-9), given)
    assert brightest(out) in {(0, 4), (8, 4)}
    other = deform(dot(4, 8), draws_for(given, 1, rotation=1e-9), given)
    assert {brightest(out), brightest(other)} == {(0, 4), (8, 4)}


def test_scale_magnifies() -> None:
    given = options(scale=(2, 2))
    out = deform(dot(4, 6), draws_for(given, 1), given)
    assert brightest(out) == (4, 8)


def test_translation_is_a_share_of_the_side() -> None:
    given = options(translation=2 / 9)
    out = deform(dot(4, 4), draws_for(given, 1, shift_x=1 - 1e-9), given)
    assert brightest(out) == (4, 2)


def test_shear_moves_rows_sideways() -> None:
    given = options(shear=1.0)
    top, middle = (
        deform(dot(row, 4), draws_for(given, 1, shear=1 - 1e-9), given) for row in (2, 4)
    )
    assert brightest(middle) == (4, 4)
    assert brightest(top)[0] == 2
    assert abs(brightest(top)[1] - 4) == 2


def test_thickening_mixes_in_the_maximum() -> None:
    given = options(thicken=1, thicken_probability=0.5)
    image = dot(4, 4)
    full = deform(image, draws_for(given, 1, chosen=0.1, mixture=1 - 1e-9), given)
    torch.testing.assert_close(
        full, torch.nn.functional.max_pool2d(image, 3, 1, 1), atol=1e-4, rtol=0
    )
    untouched = deform(image, draws_for(given, 1, chosen=0.9, mixture=1 - 1e-9), given)
    torch.testing.assert_close(untouched, image, atol=1e-5, rtol=0)


def test_gain_brightens_above_black_and_clips() -> None:
    given = options(gain=2)
    image = torch.tensor([-1.0, -0.5, 0.5, 1.0]).view(1, 1, 2, 2)
    out = deform(image, draws_for(given, 1, gain=1 - 1e-9), given)
    torch.testing.assert_close(
        out.flatten(), torch.tensor([-1.0, 0.0, 1.0, 1.0]), atol=1e-4, rtol=0
    )


def test_displacement_has_the_asked_strength() -> None:
    given = options(displacement=0.05)
    ramp = torch.linspace(-1, 1, 41)[None, None, None].expand(64, 1, 41, 41) * 0.5
    draws = torch.randn(64, num_draws(given), generator=torch.Generator().manual_seed(0))
    moved = (deform(ramp, draws, given) - ramp)[:, :, 8:-8, 8:-8]
    # On a ramp the change of value is the displacement; interpolation between control points averages some of it out.
    share_of_side = moved.std() / (ramp[0, 0, 0, 1] - ramp[0, 0, 0, 0]) / 41
    assert 0.5 * 0.05 < share_of_side < 1.1 * 0.05


def test_each_image_has_its_own_draws() -> None:
    given = DeformationOptions()
    images = torch.rand(2, 1, 12, 12).mul(2).sub(1)[:1].expand(2, -1, -1, -1)
    draws = torch.randn(2, num_draws(given))
    together = deform(images, draws, given)
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together[1:], deform(images[1:], draws[1:], given))
    assert together.min() >= -1 - 1e-5
    assert together.max() <= 1


@pytest.mark.parametrize("scale", [(1.2, 0.8), (0.0, 1.0)])
def test_scale_must_be_ordered(scale: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="0 < min <= max"):
        DeformationOptions(scale=scale)
    assert math.isclose(DeformationOptions(scale=(0.9, 0.9)).scale[0], 0.9)
