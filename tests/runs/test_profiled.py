"""Runs under the profiler."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from on_disk import same, stop_after, weights
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.profiling import SpanRecorder, read_profile
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]


def test_spans_cover_the_run(tiny: Tiny, tmp_path: Path) -> None:
    # The first optimizer of a process imports torch._dynamo, longer than these stages last.
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    spans = SpanRecorder()
    train(tiny(), tmp_path / "run", context=Context(spans=spans))
    assert {path[0] for path in spans.seconds} == {
        *("setup", "check", "pp", "p-ssl", "evaluation", "pictures")
    }
    for stage in ("pp", "p-ssl"):
        seconds = spans.seconds
        phases = {p[1]: s for p, s in seconds.items() if len(p) == 2 and p[0] == stage}
        assert set(phases) >= {
            "latents",
            "generator",
            "views",
            "forward",
            "loss",
            "backward",
            "optimizer",
        }
        assert 0.5 * seconds[(stage,)] < sum(phases.values()) <= seconds[(stage,)]


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
    assert list(stages) == ["setup", "check", "pp", "p-ssl", "evaluation", "pictures"]
    assert (stages["pp"].steps, stages["p-ssl"].steps) == (12, 20)
    assert stages["pp"].images_synthesized == stages["pp"].images_served == 12 * 16
    assert stages["p-ssl"].images_synthesized == 20 * 8
    assert stages["p-ssl"].images_trained == 20 * (8 + 8)
    for name in ("pp", "p-ssl"):
        assert stages[name].overlap_reason == summary["stages"][name]["overlap_reason"]
        assert "CPU" in (stages[name].compile_reason or "")
        assert stages[name].compile_seconds == 0
    assert stages["setup"].compile_reason is None
    paths = {span.path[0] for span in stages["p-ssl"].spans}
    assert paths >= {"conditioning", "latents", "generator", "views", "classifier", "forward"}
    assert paths >= {"loss", "backward", "optimizer", "evaluation", "checkpoint"}


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
    assert (resumed.name, resumed.steps, resumed.images_synthesized) == ("p-ssl", 16, 16 * 8)


def test_a_mistake_leaves_the_profile_of_another_run_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile.json").write_text("mine")
    with pytest.raises(UserError, match="--resume"):
        train(tiny(), tmp_path / "run", profile=True)
    assert (tmp_path / "run" / "profile.json").read_text() == "mine"
    assert len(list((tmp_path / "run").iterdir())) == 1
