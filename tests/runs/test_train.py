"""Whole runs on the tiny task: what is written, determinism, resume, a clean stop, faults."""

import errno
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ptgm_fast.config import RunConfig, load_config
from ptgm_fast.errors import UserError
from ptgm_fast.models import build, save_weights
from ptgm_fast.profiling import SpanRecorder, read_profile
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import Progress, run_stages, train
from ptgm_fast.training.context import Context, Interrupted
from ptgm_fast.training.options import PSSL_METHODS

Tiny = Callable[..., RunConfig]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def trained(config: RunConfig) -> dict[str, torch.Tensor]:
    """The weights a run ends with, without its folder and pictures."""
    task = build_task(config)
    return run_stages(task, Progress(task.new_network()), Context()).network.export_state()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_folder_holds_what_it_promises(tiny: Tiny, tmp_path: Path) -> None:
    config, out = tiny(), tmp_path / "run"
    summary = train(config, out)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["task"] == "blobs"
    assert set(summary) >= {"task", "seed", "device", "versions", "stages", "target"}
    assert list(summary["stages"]) == ["pp", "p-ssl"]
    for stage in summary["stages"].values():
        assert set(stage) >= {"steps", "seconds", "images_per_second", "images_synthesised"}
    assert summary["stages"]["pp"]["images_synthesised"] == 12 * 16
    assert summary["stages"]["p-ssl"]["images_synthesised"] == 20 * 8
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


def test_the_rewritten_generator_makes_the_same_run(tiny: Tiny, tmp_path: Path) -> None:
    both = [
        train(tiny(f"source.optimize={choice}"), tmp_path / choice) for choice in ("true", "false")
    ]
    rewritten, original = (summary["source"]["optimized"] for summary in both)
    assert original is None
    assert rewritten["left"] is None
    assert rewritten["difference"] <= 1e-5
    counts = rewritten["multiply_adds_per_image"]
    assert counts["after"] < counts["before"]
    first, second = (weights(tmp_path / choice) for choice in ("true", "false"))
    # Images differ by rounding: so do the weights, and nothing else.
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "network", ["DCGAN", "Indexed?soft=sample-class", "Indexed?soft=mix-embedding"]
)
def test_a_generator_of_ones_own(
    network: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run with a module by URI, rewritten where it can be; its answer to soft labels is in the summary."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "generators"))
    num_classes, size = (10, 8) if network == "DCGAN" else (5, 4)
    classifier = build("ptgm:cnn-small", num_classes=num_classes, channels=3, image_size=size)
    save_weights(classifier, tmp_path / "c.safetensors")
    config = tiny(
        f"source.generator=module:own_dcgan:{network}",
        "source.classifier.network=ptgm:cnn-small",
        f"source.classifier.weights={tmp_path / 'c.safetensors'}",
        "source.optimize=true",
    )
    source = train(config, tmp_path / "run")["source"]
    assert source["soft_labels"] == (network.partition("=")[2] or "soft-vector")
    assert (source["optimized"]["left"] is None) == ("mix" not in network)


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
    assert not same(trained(tiny(*common)), trained(tiny(*common, setting)))


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("uda", "p_ssl.temperature=2.0"),
        ("uda", "p_ssl.threshold=0.999"),
        ("uda", "p_ssl.strong_views=none"),
        ("uda", "p_ssl.teacher=ema"),
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
    assert not same(trained(tiny(*common)), trained(tiny(*common, setting)))


def stop_after(stage: str, step: int) -> Context:
    seen: list[bool] = []

    def on_step(name: str, done: int, steps: int) -> None:
        if name == stage and done >= step:
            seen.append(True)

    return Context(on_step=on_step, stop=lambda: bool(seen))


@pytest.mark.parametrize(
    ("stage", "step"), [("pp", 1), ("pp", 7), ("pp", 12), ("p-ssl", 1), ("p-ssl", 13)]
)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_run_resumes_bit_for_bit(
    tiny: Tiny, tmp_path: Path, stage: str, step: int, ema: float
) -> None:
    config = tiny(f"training.ema_decay={ema}", f"pp.ema_decay={ema}")
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", context=stop_after(stage, step))
    assert not (tmp_path / "parts" / "summary.json").exists()
    resumed = train(config, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert resumed["target"] == whole["target"]
    assert resumed["stages"]["p-ssl"]["best_step"] == whole["stages"]["p-ssl"]["best_step"]
    lines = {
        name: (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("whole", "parts")
    }
    drop = ("images_per_second",)
    kept = {
        n: [{k: v for k, v in json.loads(x).items() if k not in drop} for x in lines[n]]
        for n in lines
    }
    assert kept["whole"] == kept["parts"]


def test_a_killed_run_resumes_from_its_last_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """An exception out of nowhere, as a kill would be: the checkpoint of step 6 is there, and used."""
    config = tiny()
    train(config, tmp_path / "whole")

    def die(name: str, done: int, steps: int) -> None:
        if name == "p-ssl" and done == 11:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "parts", context=Context(on_step=die))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "p-ssl", "st')
    first: list[tuple[str, int]] = []
    train(
        config,
        tmp_path / "parts",
        resume=True,
        context=Context(on_step=lambda n, d, s: first.append((n, d))),
    )
    assert first[0] == ("p-ssl", 7)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_resume_of_a_finished_run_is_its_summary(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("training.steps=4", "pp.steps=2")
    summary = train(config, tmp_path / "run")
    assert train(config, tmp_path / "run", resume=True) == summary


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


def test_a_full_disk_keeps_what_was_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        import os

        real, calls = os.fsync, []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(config, tmp_path / "parts")
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert train(config, tmp_path / "parts", resume=True)["target"] == whole["target"]


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


def test_spans_cover_the_run(tiny: Tiny, tmp_path: Path) -> None:
    spans = SpanRecorder()
    train(tiny(), tmp_path / "run", context=Context(spans=spans))
    assert {path[0] for path in spans.seconds} == {"pp", "p-ssl", "evaluation", "pictures", "setup"}
    for stage in ("pp", "p-ssl"):
        phases = spans.phases(stage)
        assert set(phases) >= {
            "latents",
            "generator",
            "views",
            "forward",
            "loss",
            "backward",
            "optimiser",
            "other",
        }
        assert sum(phases.values()) == pytest.approx(spans.seconds[(stage,)], rel=1e-6)
        assert phases["other"] < 0.5 * spans.seconds[(stage,)]


def test_a_profiled_run_has_the_same_weights_and_counts_its_images(
    tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny()
    train(config, tmp_path / "plain")
    summary = train(config, tmp_path / "profiled", profile=True)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "profiled"))
    assert not (tmp_path / "plain" / "profile.json").exists()
    profile = read_profile(tmp_path / "profiled")
    assert profile.complete
    assert profile.versions == summary["versions"]
    stages = {stage.name: stage for stage in profile.stages}
    assert list(stages) == ["setup", "pp", "p-ssl", "evaluation", "pictures"]
    assert (stages["pp"].steps, stages["p-ssl"].steps) == (12, 20)
    assert stages["pp"].images_synthesised == stages["pp"].images_served == 12 * 16
    assert stages["p-ssl"].images_synthesised == 20 * 8
    assert stages["p-ssl"].images_trained == 20 * (8 + 8)
    paths = {span.path[0] for span in stages["p-ssl"].spans}
    assert paths >= {"conditioning", "latents", "generator", "views", "classifier", "forward"}
    assert paths >= {"loss", "backward", "optimiser", "evaluation", "checkpoint"}


def test_a_stopped_run_is_profiled_and_a_resume_profiles_the_rest(
    tiny: Tiny, tmp_path: Path
) -> None:
    config, out = tiny(), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, out, context=stop_after("p-ssl", 4), profile=True)
    stopped = read_profile(out)
    assert not stopped.complete
    assert {s.name: s.steps for s in stopped.stages if s.steps} == {"pp": 12, "p-ssl": 4}
    train(config, out, resume=True, profile=True)
    rest = read_profile(out)
    assert rest.complete
    (resumed,) = [stage for stage in rest.stages if stage.steps]
    assert (resumed.name, resumed.steps, resumed.images_synthesised) == ("p-ssl", 16, 16 * 8)


def test_a_mistake_leaves_the_profile_of_another_run_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile.json").write_text("mine")
    with pytest.raises(UserError, match="--resume"):
        train(tiny(), tmp_path / "run", profile=True)
    assert (tmp_path / "run" / "profile.json").read_text() == "mine"
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_no_validation_images_keep_the_last_weights(tiny: Tiny, tmp_path: Path) -> None:
    summary = train(tiny("data.validation_per_class=0"), tmp_path / "run")
    assert summary["target"]["val_accuracy"] is None
    assert summary["stages"]["p-ssl"]["best_step"] == 20


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(tiny: Tiny, tmp_path: Path) -> None:
    config, out, said = tiny("checkpoint_keep=3"), tmp_path / "parts", []
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, out, context=stop_after("p-ssl", 13))
    assert sorted(p.name for p in out.glob("checkpoint*")) == [
        "checkpoint.1.pt",
        "checkpoint.2.pt",
        "checkpoint.pt",
    ]
    data = bytearray((out / "checkpoint.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "checkpoint.pt").write_bytes(data)
    first: list[int] = []
    context = Context(on_notice=said.append, on_step=lambda stage, step, steps: first.append(step))
    train(config, out, resume=True, context=context)
    assert first[0] == 13  # the checkpoint before is that of step 12
    assert len(said) == 1
    assert "checkpoint.pt' is damaged" in said[0]
    assert same(weights(tmp_path / "whole"), weights(out))


def test_a_run_whose_config_was_changed_is_not_continued(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run", context=stop_after("pp", 7))
    for changed in (tiny("p_ssl.weight=0.25"), tiny(seed=9)):
        with pytest.raises(UserError, match="another config"):
            train(changed, tmp_path / "run", resume=True)
    assert train(tiny(), tmp_path / "run", resume=True)["processes"] == 1
