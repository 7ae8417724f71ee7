"""The source classifier at its own size, with its own normalization."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torchvision.transforms.functional import to_pil_image

from on_disk import ready
from ptgm_fast import generators
from ptgm_fast.config import RunConfig, config_to_toml, load_config
from ptgm_fast.errors import UserError
from ptgm_fast.models import build, save_weights
from ptgm_fast.runs.pools import conditioned_recipe
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import describe_classifier, make_stage
from ptgm_fast.sampling import SourceModels, conditioning_table

Tiny = Callable[..., RunConfig]


@pytest.fixture
def photographs(tmp_path: Path) -> np.ndarray:
    """60 smooth colour images of 70x90, in photographs.npz."""
    coarse = np.random.default_rng(0).uniform(0, 255, (60, 3, 5, 6))
    fine = torch.nn.functional.interpolate(torch.from_numpy(coarse), (70, 90), mode="bicubic")
    images = fine.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "photographs.npz", x=images, y=np.arange(60) % 3)
    return images


@pytest.fixture
def with_a_vit(tiny: Tiny, photographs: np.ndarray, tmp_path: Path) -> Tiny:
    """A generator of 1x8x8, a ViT of a fixed 3x160x160, a target of 3x24x24."""
    torch.manual_seed(0)
    save_weights(timm.create_model("test_vit", num_classes=6), tmp_path / "vit.safetensors")

    def config(*overrides: str) -> RunConfig:
        return tiny(
            f"data.images=npz:{tmp_path / 'photographs.npz'}",
            "data.image_size=24",
            "data.channels=3",
            "source.classifier.network=timm:test_vit",
            f"source.classifier.weights={tmp_path / 'vit.safetensors'}",
            *overrides,
        )

    return config


def test_soft_labels_are_of_the_files(with_a_vit: Tiny, photographs: np.ndarray) -> None:
    task = build_task(with_a_vit())
    assert task.data.train.form == (3, 24, 24)
    assert task.data.asking[0].shape == (15, 3, 160, 160)
    network = timm.create_model("test_vit", num_classes=6).eval()
    network.load_state_dict(task.source.classifier.state_dict())
    transform = create_transform(**resolve_data_config(model=network))
    # Identify the photographs by what the target network sees of them.
    every = build_task(with_a_vit()).read.images.images
    rows = [int((every == image).flatten(1).all(1).nonzero()) for image in task.data.train.images]
    with torch.no_grad():
        logits = network(torch.stack([transform(to_pil_image(photographs[row])) for row in rows]))
    stage = ready(make_stage("p-ssl", task, task.new_network()))
    expected = logits.softmax(1)
    assert torch.allclose(stage.table.soft_labels, expected, atol=2e-3)
    assert torch.equal(stage.table.soft_labels, conditioned_recipe(task).table.soft_labels)
    shrunk = conditioning_table(task.source, task.data.train.images).soft_labels
    assert (shrunk - expected).abs().max() > 4 * (stage.table.soft_labels - expected).abs().max()


def test_files_are_read_again_only_where_the_classifier_sees_another_form(
    with_a_vit: Tiny, tiny: Tiny
) -> None:
    assert build_task(tiny()).read.read_asking is None
    assert build_task(tiny("data.image_size=9")).data.asking[0].shape == (15, 1, 8, 8)
    same = ("data.image_size=160", "source.classifier.crop=1", "target.network=ptgm:cnn-small")
    assert build_task(with_a_vit(*same)).read.read_asking is not None
    same = (*same, "source.classifier.interpolation=bilinear")
    assert build_task(with_a_vit(*same)).read.read_asking is None


def test_every_image_is_brought_to_its_form(with_a_vit: Tiny) -> None:
    source = build_task(with_a_vit("source.classifier.mean=[0.1, 0.2, 0.3]")).source
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    large = torch.nn.functional.interpolate(
        images / 255, (160, 160), mode="bicubic", antialias=True, align_corners=False
    )
    large = large.clamp(0, 1).expand(-1, 3, -1, -1)
    std = torch.tensor(timm.get_pretrained_cfg("test_vit").std).view(1, 3, 1, 1)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = source.classifier((large - mean) / std)
    assert torch.allclose(source.classify(images), expected, atol=1e-4)
    assert torch.allclose(source.classify(images / 127.5 - 1), expected, atol=1e-4)


def test_images_of_its_form_stay_as_they_are(tiny: Tiny) -> None:
    source = build_task(tiny("source.generator=letters")).source
    assert source.form == (1, 28, 28)
    plain = SourceModels(generators.load("letters"), generators.load_classifier("letters"))
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    for given in (images, images / 127.5 - 1):
        unit = images / 255 if given.dtype == torch.uint8 else (given + 1) / 2
        with torch.no_grad():
            expected = plain.classifier((unit - 0.5) / 0.5)
        assert torch.equal(source.classify(given), expected)


def test_the_run_keeps_what_it_saw(with_a_vit: Tiny, tmp_path: Path) -> None:
    config = with_a_vit("source.classifier.crop=0.5")
    written = tomllib.loads(config_to_toml(config))["source"]["classifier"]
    stated = timm.get_pretrained_cfg("test_vit")
    assert written["image_size"] == 160
    assert written["mean"] == list(stated.mean)
    assert (written["crop"], written["interpolation"]) == (0.5, stated.interpolation)
    (tmp_path / "again.toml").write_text(config_to_toml(config))
    assert load_config(tmp_path / "again.toml") == config
    notices: list[str] = []
    task = build_task(config, on_notice=notices.append)
    assert any("timm:test_vit sees 160x160 with 3 channels" in notice for notice in notices)
    described = describe_classifier(task)
    assert described["network"] == "timm:test_vit"
    assert (described["image_size"], described["channels"], described["crop"]) == (160, 3, 0.5)
    assert described["mean"] == list(stated.mean)


def test_what_no_network_states_is_said(tiny: Tiny, tmp_path: Path) -> None:
    save_weights(
        build("ptgm:cnn-small", num_classes=6, channels=1, image_size=8), tmp_path / "c.safetensors"
    )
    own = (
        "source.classifier.network=ptgm:cnn-small",
        f"source.classifier.weights={tmp_path / 'c.safetensors'}",
    )
    notices: list[str] = []
    build_task(tiny(*own), on_notice=notices.append)
    assert any("sees 8x8 with 1 channel" in n and "the generator's size" in n for n in notices)
    notices.clear()
    told = ("image_size=8", "mean=[0.5]", "std=[0.5]")
    build_task(tiny(*own, *(f"source.classifier.{t}" for t in told)), on_notice=notices.append)
    assert not any("the generator's size" in notice for notice in notices)


def test_a_network_of_other_channels_than_it_states(tiny: Tiny, tmp_path: Path) -> None:
    grey = timm.create_model("test_resnet", num_classes=6, in_chans=1)
    save_weights(grey, tmp_path / "grey.safetensors")
    own = (
        "source.classifier.network=timm:test_resnet",
        f"source.classifier.weights={tmp_path / 'grey.safetensors'}",
    )
    with pytest.raises(UserError, match=r"\(expected \["):
        build_task(tiny(*own))
    source = build_task(tiny(*own, "source.classifier.channels=1")).source
    assert (source.form, source.mean.flatten().tolist()) == ((1, 160, 160), [0.5])
