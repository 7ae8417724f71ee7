"""Pseudo pre-training that starts with smaller images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from on_disk import same, stop_after, trained_once, weights
from ptgm_fast import kernels
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage, train
from ptgm_fast.sampling import derive_seed
from ptgm_fast.training.context import Interrupted

Tiny = Callable[..., RunConfig]
SIDES = "pp.resolution=[[0.5, 0.25], [0.75, 0.5], [1.0, 1.0]]"


@pytest.mark.parametrize("images", ["fresh", "64"])
def test_the_views_of_a_step_have_its_side(tiny: Tiny, images: str) -> None:
    """12 steps: three of 4x4, three of 6x6, six of 8x8; the last six match a run without phases."""
    settings = () if images == "fresh" else (f"synthesis.images={images}",)
    task = build_task(tiny(SIDES, *settings))
    stage = make_stage("pp", task, task.new_network())
    plain = make_stage("pp", build_task(tiny(*settings)), task.new_network())
    for each in (stage, plain):
        each.prepare()
    sides = [stage.make_batch(step).inputs.shape[2:] for step in range(12)]
    assert sides == [(4, 4)] * 3 + [(6, 6)] * 3 + [(8, 8)] * 6
    assert torch.equal(stage.make_batch(11).inputs, plain.make_batch(11).inputs)
    assert torch.equal(stage.make_batch(1).labels, plain.make_batch(1).labels)


def test_the_smaller_views_are_those_of_smaller_images(tiny: Tiny) -> None:
    task = build_task(tiny(SIDES))
    stage = make_stage("pp", task, task.new_network())
    synthesis, config = stage.synthesis, task.config
    labels = synthesis.labels(16, 16)
    expected, _ = kernels.views(
        synthesis.images(16, 16, labels, "class"),
        config.pp.views,
        seed=derive_seed(config.seed, "pp/views"),
        start=16,
        size=(4, 4),
        impl="reference",
    )
    found = stage.make_batch(1).inputs
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("step", [2, 3, 7])
def test_a_stop_in_any_phase_resumes_bit_for_bit(tiny: Tiny, tmp_path: Path, step: int) -> None:
    config = tiny(SIDES)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", context=stop_after("pp", step))
    train(config, tmp_path / "parts", resume=True)
    assert same(trained_once(config), weights(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("[[0.5, 0.5]]", "must rise to 1.0"),
        ("[[0.5, 0.6], [1.0, 0.5]]", "must rise to 1.0"),
        ("[[0.0, 1.0]]", "greater than 0"),
        ("[[1.5, 1.0]]", "less than or equal to 1"),
        ("[[0.5, 0.0], [1.0, 1.0]]", "must rise to 1.0"),
        ("[]", "must rise to 1.0"),
    ],
)
def test_phases_that_are_none(tiny: Tiny, phases: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(f"pp.resolution={phases}")


def test_a_network_of_one_size_is_refused_where_smaller_images_were_asked_for(
    tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny("pp.resolution=[[0.5, 0.5], [1.0, 1.0]]", "target.network=ptgm:cnn-small")
    with pytest.raises(UserError, match=r"does not take images of 4x4 .*leave it out"):
        train(config, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("size", "network", "sides"),
    [
        (16, "ptgm:resnet-small", [8] * 8 + [16] * 4),
        (16, "ptgm:cnn-small", [16] * 12),  # a flattened head: one size only
        (14, "ptgm:resnet-small", [14] * 12),  # half of it is less than 8 pixels
    ],
)
def test_auto_begins_on_half_the_side_where_it_can(
    tiny: Tiny, size: int, network: str, sides: list[int]
) -> None:
    settings = (f"data.image_size={size}", f"target.network={network}")
    task = build_task(tiny(*settings))
    assert task.config.pp.resolution == "auto"
    stage = make_stage("pp", task, task.new_network())
    stage.prepare()
    assert [stage.make_batch(step).inputs.shape[3] for step in range(12)] == sides
