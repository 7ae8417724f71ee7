"""A colour generator of another size than the target and without a classifier: one is trained on its samples first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from on_disk import same, stop_after, weights
from ptgm_fast.config import RunConfig, load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs.check import check
from ptgm_fast.runs.compare import Asked, compare
from ptgm_fast.runs.own_classifier import FIGURES, WEIGHTS, train_classifier
from ptgm_fast.runs.report import write_report
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.runs.task import build_source, build_task
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]
MODULE = """
import torch
from torch import nn

class Colours(nn.Module):
    '''Five classes of 3x10x10: a colour each, beneath noise.'''
    num_classes, latent_dim, condition = 5, 4, "soft-vector"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.colours, self.noise = nn.Linear(5, 3, bias=False), nn.Linear(4, 300)
    def forward(self, latents, soft):
        colour = 4 * self.colours(soft)[:, :, None, None]
        return (colour + 0.5 * self.noise(latents).view(-1, 3, 10, 10)).tanh()
"""


@pytest.fixture
def alone(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny task with only that generator; its target sees 1x13x13."""
    name = f"colours_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def config(*overrides: str, seed: int | None = None) -> RunConfig:
        return tiny(
            f"source.generator=module:{name}:Colours",
            "source.classifier.network=none",
            "source.training.network=ptgm:cnn-small",
            "source.training.steps=30",
            "source.training.batch_size=32",
            "source.training.checkpoint_every=4",
            "data.image_size=13",
            "data.channels=1",
            *overrides,
            seed=seed,
        )

    return config


def test_a_run_from_a_generator_alone(alone: Tiny, tmp_path: Path) -> None:
    stages: list[str] = []
    context = Context(on_step=lambda stage, step, steps: stages.append(stage))
    summary = train(alone(), tmp_path / "run", context=context)
    assert list(dict.fromkeys(stages)) == ["classifier", "pp", "p-ssl"]
    figures = summary["classifier"]
    assert figures["images_synthesized"] == 30 * 32
    assert figures["fresh_samples_recognized"] > 0.9
    assert summary["check"]["pair"]["top1"] > 0.9
    page = write_report([tmp_path / "run"]).read_text()
    assert "The source classifier predicts" in page
    # The kept classifier, named, makes the same run.
    named = alone(
        "source.classifier.network=ptgm:cnn-small",
        f"source.classifier.weights={tmp_path / 'run' / WEIGHTS}",
    )
    again = train(named, tmp_path / "named")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "named"))
    assert "classifier" not in again
    record = check(build_task(named), tmp_path / "check", samples=40)
    assert record.pair.top1 > 0.9


@pytest.mark.parametrize(("stage", "step"), [("classifier", 9), ("p-ssl", 7)])
def test_a_stopped_run_resumes_bit_for_bit(
    alone: Tiny, tmp_path: Path, stage: str, step: int
) -> None:
    config = alone("synthesis.images_per_target=3")
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", context=stop_after(stage, step))
    steps: list[tuple[str, int]] = []
    context = Context(on_step=lambda name, done, _: steps.append((name, done)))
    train(config, tmp_path / "run", resume=True, context=context)
    assert steps[0] == (stage, step + 1)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    kept = [(tmp_path / run / WEIGHTS).read_bytes() for run in ("run", "whole")]
    assert kept[0] == kept[1]
    assert not list((tmp_path / "run").glob("classifier-checkpoint*"))


def test_seeds_and_methods_share_it(alone: Tiny, tmp_path: Path) -> None:
    stages: list[tuple[str, int]] = []
    context = Context(on_step=lambda stage, step, steps: stages.append((stage, step)))
    report = compare(
        alone(), Asked(("soft-target", "p-ssl"), (0, 1)), tmp_path / "both", context=context
    )
    assert stages.count(("classifier", 30)) == 1
    alone_too = train(alone('stages=["p-ssl"]', seed=1), tmp_path / "run")
    assert report["methods"]["p-ssl"]["test_accuracy"][1] == alone_too["target"]["test_accuracy"]
    kept = [(tmp_path / run / WEIGHTS).read_bytes() for run in ("run", "both")]
    assert kept[0] == kept[1]


def test_it_is_of_its_seed_alone(alone: Tiny, tmp_path: Path) -> None:
    def trained(name: str, *settings: str, seed: int = 0) -> bytes:
        config = alone("source.training.steps=3", *settings, seed=seed)
        source = build_source(config)
        # A network is built with torch's initial weights before its file is loaded.
        state = torch.get_rng_state()
        train_classifier(source, config, tmp_path / name)
        assert torch.equal(torch.get_rng_state(), state)
        return (tmp_path / name / WEIGHTS).read_bytes()

    first = trained("a")
    assert trained("b", seed=5) == first
    assert trained("c", "source.training.seed=1") != first
    made_of = json.loads((tmp_path / "a" / FIGURES).read_text())["made_of"]
    assert made_of["training"]["steps"] == 3
    with pytest.raises(UserError, match=r"other source\.training settings"):
        trained("a", "source.training.lr=0.01")


def test_what_has_no_effect_or_needs_one_first(alone: Tiny, tmp_path: Path) -> None:
    for setting in ("mean=[0.1]", "weights=c.safetensors", "image_size=9"):
        with pytest.raises(UserError, match=f"leave out {setting.partition('=')[0]}"):
            alone(f"source.classifier.{setting}")
    (tmp_path / "short.toml").write_text('[source]\nclassifier = "none"')
    assert load_config(tmp_path / "short.toml").source.classifier.network == "none"
    with pytest.raises(UserError, match="classifier-only"):
        synthesize(alone(), 8, tmp_path / "out", conditioned=True)
    assert synthesize(alone(), 8, tmp_path / "uniform")["count"] == 8
