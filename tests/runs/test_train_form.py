"""Whole runs whose target network sees images of another size and with other channels than the generator makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from on_disk import ready, same, trained, weights
from ptgm_fast.config import RunConfig
from ptgm_fast.models import build, save_weights
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage, train

Tiny = Callable[..., RunConfig]


@pytest.fixture
def any_size(tiny: Tiny, tmp_path: Path) -> Tiny:
    """The tiny task, whose generator makes 1x8x8, with a source classifier that takes any size."""
    torch.manual_seed(0)
    classifier = build("ptgm:resnet-small", num_classes=6, channels=1, image_size=8)
    save_weights(classifier, tmp_path / "classifier.safetensors")

    def config(*overrides: str) -> RunConfig:
        return tiny(
            "source.classifier.network=ptgm:resnet-small",
            f"source.classifier.weights={tmp_path / 'classifier.safetensors'}",
            *overrides,
        )

    return config


@pytest.mark.parametrize("size", [5, 13])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_batch_has_the_targets_form(any_size: Tiny, size: int, channels: int) -> None:
    config = any_size(
        f"data.image_size={size}",
        f"data.channels={channels}",
        "supervised.distillation=logit-matching",
        "p_ssl.method=uda",
    )
    task = build_task(config)
    form = (channels, size, size)
    assert task.data.train.form == form
    pp, supervised, pssl = (
        ready(make_stage(name, task, task.new_network())) for name in ("pp", "supervised", "p-ssl")
    )
    assert pp.make_batch(0).inputs.shape == (16, *form)
    assert supervised.make_batch(0).views.shape == (8, *form)
    batch = pssl.make_batch(0)
    assert batch.labelled.views.shape == batch.weak.shape == batch.strong.shape == (8, *form)


def test_a_run_of_another_form(any_size: Tiny, tmp_path: Path) -> None:
    config = any_size("data.image_size=12", "data.channels=3", "data.mean=[0.4, 0.5, 0.6]")
    summary = train(config, tmp_path / "run")
    network = build("ptgm:resnet-small", num_classes=3, channels=3, image_size=12).eval()
    network.load_state_dict(weights(tmp_path / "run"))
    data = build_task(config).data
    with torch.no_grad():
        predicted = network(data.normalizer(torch.device("cpu"))(data.test.images)).argmax(1)
    accuracy = (predicted == data.test.labels).double().mean().item()
    assert accuracy == summary["target"]["test_accuracy"]
    from PIL import Image

    with Image.open(tmp_path / "run" / "pairs.png") as picture:
        assert (picture.mode, picture.height) == ("RGB", 10 * 12)


def test_a_pool_serves_a_network_of_another_size(any_size: Tiny) -> None:
    task = build_task(any_size("data.image_size=11", "data.channels=3", "synthesis.images=64"))
    stage = ready(make_stage("pp", task, task.new_network()))
    assert stage.pool is not None
    assert stage.pool.image_shape == (1, 8, 8)
    assert stage.make_batch(0).inputs.shape == (16, 3, 11, 11)


def test_the_generators_size_is_the_default(any_size: Tiny) -> None:
    config = any_size("data.image_size=8", "data.channels=1")
    assert same(trained(config), trained(any_size()))
