"""What networks were trained to see, against the transforms that timm and torchvision make of it."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torchvision import models
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from ptgm_fast.data.images import Fit, fit
from ptgm_fast.models import Preprocessing, stated_preprocessing


@pytest.fixture
def photograph() -> torch.Tensor:
    """Smooth, 3x300x420, uint8."""
    coarse = torch.randint(0, 256, (1, 3, 7, 9), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse.float(), size=(300, 420), mode="bicubic")
    return fine.clamp(0, 255).round().to(torch.uint8)[0]


def seen(image: torch.Tensor, stated: Preprocessing) -> torch.Tensor:
    fitted = fit(image[None], Fit(stated.image_size, stated.crop, stated.interpolation))[0]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (stated.mean, stated.std))
    return (fitted / 255 - mean) / std


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_tiny", "test_vit"])
def test_timm(photograph: torch.Tensor, name: str) -> None:
    stated = stated_preprocessing(f"timm:{name}")
    assert stated is not None
    transform = create_transform(**resolve_data_config(model=timm.create_model(name)))
    expected = transform(to_pil_image(photograph))
    ours = seen(photograph, stated)
    assert ours.shape == expected.shape == stated.form
    # Pillow rounds between its two passes.
    assert (ours - expected).abs().max() < 2.5 / 255 / min(stated.std)


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b3", "swin_v2_t"])
def test_torchvision(photograph: torch.Tensor, name: str) -> None:
    stated = stated_preprocessing(f"torchvision:{name}")
    assert stated is not None
    transform = models.get_model_weights(name).DEFAULT.transforms()
    expected = transform(pil_to_tensor(to_pil_image(photograph)))
    ours = seen(photograph, stated)
    assert ours.shape == expected.shape == stated.form
    assert (ours - expected).abs().max() < 2.5 / 255 / min(stated.std)


@pytest.mark.parametrize("name", ["ptgm:cnn-small", "a.module:factory", "timm:nothing", "", "x"])
def test_nothing_is_stated(name: str) -> None:
    assert stated_preprocessing(name) is None
