"""A run that was stopped, killed or ran out of disk space resumes to the same bits."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from on_disk import Wholes, same, stop_after, weights
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    return Wholes(tmp_path_factory.mktemp)


@pytest.mark.parametrize(
    ("stage", "step"), [("pp", 1), ("pp", 7), ("pp", 12), ("p-ssl", 1), ("p-ssl", 13)]
)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stopped_run_resumes_bit_for_bit(
    tiny: Tiny, whole_run: Wholes, tmp_path: Path, stage: str, step: int, ema: float
) -> None:
    config = tiny(f"training.ema_decay={ema}", f"pp.ema_decay={ema}")
    out = whole_run(config)
    whole = json.loads((out / "summary.json").read_text())
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", context=stop_after(stage, step))
    assert not (tmp_path / "parts" / "summary.json").exists()
    resumed = train(config, tmp_path / "parts", resume=True)
    assert same(weights(out), weights(tmp_path / "parts"))
    assert resumed["target"] == whole["target"]
    assert resumed["stages"]["p-ssl"]["best_step"] == whole["stages"]["p-ssl"]["best_step"]
    lines = {
        name: (folder / "metrics.jsonl").read_text().splitlines()
        for name, folder in (("whole", out), ("parts", tmp_path / "parts"))
    }
    drop = ("images_per_second",)
    kept = {
        n: [{k: v for k, v in json.loads(x).items() if k not in drop} for x in lines[n]]
        for n in lines
    }
    assert kept["whole"] == kept["parts"]


@pytest.mark.parametrize(
    "settings",
    [
        ("p_ssl.method=['source-head', 'mean-teacher']", "p_ssl.teacher_decay=0.3"),
        ("p_ssl.method=flexmatch", "p_ssl.threshold=0.7", "p_ssl.average_decay=0.8"),
        ("p_ssl.method=freematch", "p_ssl.average_decay=0.8"),
        ("p_ssl.method=softmatch", "p_ssl.average_decay=0.8"),
        ("p_ssl.method=adamatch", "p_ssl.batch_norm=concat"),
        ("p_ssl.method=['uda', 'mse']", "p_ssl.threshold=0.0", "p_ssl.alignment=labelled"),
    ],
    ids=str,
)
def test_what_the_losses_remember_is_resumed(
    tiny: Tiny, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = tiny("pp.steps=2", "training.validate_every=0", *settings)
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", context=stop_after("p-ssl", 13))
    train(config, tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_killed_run_resumes_from_its_last_checkpoint(
    tiny: Tiny, whole_run: Wholes, tmp_path: Path
) -> None:
    """An exception out of nowhere, as a kill would be: the checkpoint of step 6 is there, and used."""
    config = tiny()

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
    assert same(weights(whole_run(config)), weights(tmp_path / "parts"))


def test_resume_of_a_finished_run_is_its_summary(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny("training.steps=4", "pp.steps=2")
    summary = train(config, tmp_path / "run")
    assert train(config, tmp_path / "run", resume=True) == summary
    # If it is damaged, the error names it and the fix, and the fix works.
    file = tmp_path / "run" / "summary.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(UserError, match=r"summary\.json.*not valid JSON.*Remove it.*--resume"):
        train(config, tmp_path / "run", resume=True)
    file.unlink()
    assert train(config, tmp_path / "run", resume=True)["target"] == summary["target"]


def test_a_full_disk_keeps_what_was_written(
    tiny: Tiny, whole_run: Wholes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    whole = json.loads((whole_run(config) / "summary.json").read_text())
    with monkeypatch.context() as patch:
        import os

        real, calls = os.fsync, []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > 7:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(config, tmp_path / "parts")
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert train(config, tmp_path / "parts", resume=True)["target"] == whole["target"]


def test_a_damaged_newest_checkpoint_costs_steps_not_the_run(
    tiny: Tiny, whole_run: Wholes, tmp_path: Path
) -> None:
    config, out, said = tiny("checkpoint_keep=3"), tmp_path / "parts", []
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
    assert same(weights(whole_run(tiny())), weights(out))


def test_a_run_whose_config_was_changed_is_not_continued(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "run", context=stop_after("pp", 7))
    for changed in (tiny("p_ssl.weight=0.25"), tiny(seed=9)):
        with pytest.raises(UserError, match="another config"):
            train(changed, tmp_path / "run", resume=True)
    assert train(tiny(), tmp_path / "run", resume=True)["processes"] == 1
