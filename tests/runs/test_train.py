"""Whole runs on the tiny task: what is written, determinism, the effect of every setting, failures."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from on_disk import ready, same, trained, trained_once, weights
from ptgm_fast.config import RunConfig, load_config
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork, build
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage, train
from ptgm_fast.training.pssl_options import PSSL_METHODS

Tiny = Callable[..., RunConfig]


def test_a_run_folder_holds_what_it_promises(tiny: Tiny, tmp_path: Path) -> None:
    config, out = tiny(), tmp_path / "run"
    summary = train(config, out)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["task"] == "blobs"
    assert set(summary) >= {"task", "seed", "device", "versions", "stages", "target"}
    assert list(summary["stages"]) == ["pp", "p-ssl"]
    assert set(summary["check"]) == {"pair", "target", "warnings"}
    for stage in summary["stages"].values():
        assert set(stage) >= {"steps", "seconds", "images_per_second", "images_synthesized"}
    assert summary["stages"]["pp"]["images_synthesized"] == 12 * 16
    assert summary["stages"]["p-ssl"]["images_synthesized"] == 20 * 8
    assert 0 <= summary["target"]["test_accuracy"] <= 1
    assert summary["target"]["test_images"] == 30
    assert set(summary["target"]) >= {"test_accuracy", "val_accuracy", "ece"}
    assert load_config(out / "config.toml") == config
    from PIL import Image

    for picture in ("samples.png", "curves.png"):
        with Image.open(out / picture) as image:
            assert min(image.size) > 200
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == {"pp", "p-ssl"}
    assert [r["step"] for r in records if r["stage"] == "pp"] == [4, 8, 12]
    assert all(math.isfinite(r["loss"]) for r in records if "loss" in r)
    assert [r["step"] for r in records if "validation_accuracy" in r] == [10, 20]


def test_saved_weights_are_the_original_architectures(tiny: Tiny, tmp_path: Path) -> None:
    """A user loads model.safetensors into the plain network and measures the summary's accuracy."""
    config = tiny()
    summary = train(config, tmp_path / "run")
    network = build("ptgm:resnet-small", num_classes=3, channels=1, image_size=8).eval()
    network.load_state_dict(weights(tmp_path / "run"))
    test = build_task(config).data.test
    with torch.no_grad():
        predicted = network((test.images.float() / 255 - 0.5) / 0.5).argmax(1)
    assert (predicted == test.labels).double().mean().item() == summary["target"]["test_accuracy"]


def test_same_seed_same_bits_and_another_seed_others(tiny: Tiny, tmp_path: Path) -> None:
    summaries = [
        train(tiny(seed=seed), tmp_path / name) for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    ]
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert summaries[0]["target"] == summaries[1]["target"]
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("method", PSSL_METHODS)
def test_every_method_trains_and_depends_on_its_pseudo_samples(
    tiny: Tiny, tmp_path: Path, method: str
) -> None:
    common = (
        f"p_ssl.method={method}",
        "p_ssl.batch_norm=concat",
        "p_ssl.threshold=0.0",
        'stages=["p-ssl"]',
        "training.steps=6",
    )
    assert not same(trained(tiny(*common)), trained(tiny(*common, "p_ssl.weight=0.0")))


@pytest.mark.parametrize(
    "setting",
    [
        "p_ssl.batch_norm=split",
        "p_ssl.batch_norm=target-only",
        "p_ssl.distillation=none",
        "p_ssl.distillation=logit-matching",
        "p_ssl.pcs_temperature=3.0",
        "p_ssl.pcs_top_k=1",
        "p_ssl.source_label=classifier",
        "p_ssl.ramp_steps=9",
        "p_ssl.weight=0.5",
        "p_ssl.weak_views=none",
        "distillation.temperature=2.0",
        "distillation.soft_target_weight=0.5",
        "training.optimizer=adamw",
        "training.schedule=cosine",
        "training.momentum=0.5",
        "training.weight_decay=0.1",
        "training.gradient_clip=0.01",
        "training.ema_decay=0.0",
        "training.views=strong",
        "pp.views=strong",
        "pp.lr=0.01",
        "pp.ema_decay=0.9",
        "source.truncation=0.5",
        "data.mean=[0.3]",
        "data.std=[0.9]",
    ],
)
def test_every_setting_has_an_effect(tiny: Tiny, setting: str) -> None:
    common = (
        "p_ssl.method=source-head",
        "training.steps=6",
        "pp.steps=4",
        "training.validate_every=0",
    )
    common += (
        "p_ssl.source_label=condition",
        "p_ssl.batch_norm=concat",
        "p_ssl.distillation=soft-target",
    )
    assert not same(trained_once(tiny(*common)), trained(tiny(*common, setting)))


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("uda", "p_ssl.temperature=2.0"),
        ("uda", "p_ssl.threshold=0.999"),
        ("uda", "p_ssl.strong_views=none"),
        ("uda", "p_ssl.teacher=ema"),
        ("uda", "p_ssl.alignment=uniform"),
        ("softmatch", "p_ssl.average_decay=0.5"),
        ("freematch", "p_ssl.fairness_weight=0.5"),
        ("mse", "p_ssl.alignment=labelled"),
        ("mean-teacher", "p_ssl.teacher_decay=0.1"),
        ("['source-head', 'mean-teacher']", "p_ssl.weight=[1.0, 5.0]"),
        ("['source-head', 'mean-teacher']", "p_ssl.weight=[5.0, 1.0]"),
    ],
)
def test_every_setting_of_two_views_has_an_effect(tiny: Tiny, method: str, setting: str) -> None:
    common = (
        f"p_ssl.method={method}",
        "p_ssl.threshold=0.0",
        "training.steps=6",
        "pp.steps=4",
        "training.ema_decay=0.5",
    )
    assert not same(trained_once(tiny(*common)), trained(tiny(*common, setting)))


def test_the_loss_of_several_methods_is_the_sum_of_their_losses(tiny: Tiny) -> None:
    """Both losses are of the same student view: both methods have a strong one."""
    found = {}
    for methods in ("['source-head', 'mean-teacher']", "mean-teacher", "['source-head', 'mse']"):
        weights = "[0.5, 3.0]" if "[" in methods else "3.0"
        task = build_task(tiny(f"p_ssl.method={methods}", f"p_ssl.weight={weights}"))
        network = task.new_network().train()
        stage = ready(make_stage("p-ssl", task, network))
        average = task.new_network().eval()
        with torch.no_grad():
            average.heads["target"].weight *= 10
        found[methods] = stage.losses(0, stage.make_batch(0), average)
    both, one, other = found.values()
    labelled = both["cross_entropy"] + both["distillation"]
    terms = 0.5 * both["unlabelled source-head"] + 3.0 * both["unlabelled mean-teacher"]
    torch.testing.assert_close(both["loss"], labelled + terms)
    assert torch.equal(both["unlabelled mean-teacher"], one["unlabelled"])
    # The average teaches mean-teacher, the network itself mse.
    assert torch.equal(both["unlabelled source-head"], other["unlabelled source-head"])
    assert not torch.equal(both["unlabelled mean-teacher"], other["unlabelled mse"])


def test_the_filter_keeps_what_was_asked_for(tiny: Tiny) -> None:
    """Samples whose predicted label overlaps enough with the requested one; all at threshold 0, none or few at 1."""
    shares = []
    for threshold in (0.0, 0.6, 1.0):
        settings = ("p_ssl.filter=confidence", f"p_ssl.filter_threshold={threshold}")
        stage = ready(make_stage("p-ssl", *_with_network(tiny("p_ssl.batch_size=64", *settings))))
        batch = stage.make_batch(0)
        asked = stage.table.soft_labels[batch.provenance]
        found = torch.minimum(asked, batch.soft_labels).sum(1)
        assert torch.equal(batch.kept, found >= threshold)
        shares.append(batch.kept.float().mean().item())
        terms = stage.losses(0, batch)
        assert terms["kept"].item() == terms["mask_rate"].item() == shares[-1]
        assert (terms["unlabelled"].item() > 0) == (shares[-1] > 0)
    assert shares[0] == 1 > shares[2]


def _with_network(config: RunConfig) -> tuple[Task, TargetNetwork]:
    task = build_task(config)
    return task, task.new_network().train()


def test_an_existing_folder_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="--resume"):
        train(tiny(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="no run to resume"):
        train(tiny(), tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_names_step_and_stage_and_keeps_the_checkpoint(
    tiny: Tiny, tmp_path: Path
) -> None:
    # Labels stay finite until the learning rate has risen: the first checkpoint (step 5) is good.
    config = tiny(
        "pp.lr=1e38",
        "pp.schedule=one-cycle",
        "pp.steps=400",
        "pp.checkpoint_every=1",
        "pp.gradient_clip=0.0",
    )
    with pytest.raises(UserError, match=r"stage 'pp' was not finite at step \d+ of 400") as raised:
        train(config, tmp_path / "run")
    assert "gradient_clip" in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_best_checkpoint_is_chosen_on_validation(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny("training.steps=30", "training.validate_every=3"), tmp_path / "run")
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    validated = {r["step"]: r["validation_accuracy"] for r in records if "validation_accuracy" in r}
    best = max(validated.values())
    assert summary["target"]["val_accuracy"] == best
    assert summary["stages"]["p-ssl"]["best_step"] == max(
        s for s, a in validated.items() if a == best
    )


def test_no_validation_images_keep_the_last_weights(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny("data.validation_per_class=0"), tmp_path / "run")
    assert summary["target"]["val_accuracy"] is None
    assert summary["stages"]["p-ssl"]["best_step"] == 20
