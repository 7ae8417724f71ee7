"""The stages' batches with and without prefetching: the same weights and samples; failures, profiles, what is refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from on_disk import ready, same, stop_after, trained, weights
from ptgm_fast.cli import main
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.profiling import read_profile
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage, train
from ptgm_fast.training.context import Context, Interrupted
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.loop import fit
from ptgm_fast.training.stage import Stage

Tiny = Callable[..., RunConfig]
FEW = ("pp.steps=7", "training.steps=9", "training.validate_every=4")


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "ptgm-fast producer"]


def stage_of(task: Task, name: str, group: ProcessGroup | None = None) -> Stage:
    return make_stage(name, task, task.new_network(), group)


def share(method: str, batch_norm: str) -> tuple[str, str]:
    return f"p_ssl.method={method}", f"p_ssl.batch_norm={batch_norm}"


# The same bits --------------------------------------------------------------------------------------------------------


# The depth is the producer's, whatever is done with its batches: all depths of one loss, the extremes of the others.
EVERY_DEPTH, SOME = tuple(range(1, 9)), (1, 3, 8)


@pytest.mark.parametrize(
    ("settings", "depths"),
    [
        (share("uda", "concat"), EVERY_DEPTH),
        ((*share("fixmatch", "split"), "p_ssl.teacher=ema"), SOME),
        ((*share("source-head", "target-only"), "p_ssl.source_label=classifier"), SOME),
        ((*share("mse", "concat"), "p_ssl.distillation=soft-target"), SOME),
    ],
    ids=str,
)
def test_weights_are_the_same_however_batches_are_scheduled(
    tiny: Tiny, settings: tuple[str, ...], depths: tuple[int, ...]
) -> None:
    never = trained(tiny(*FEW, *settings, "engine.overlap=never"))
    for depth in depths:
        ahead = tiny(*FEW, *settings, "engine.overlap=always", f"engine.depth={depth}")
        assert same(trained(ahead), never), f"depth {depth}"
    assert not same(trained(tiny(*FEW, *settings, seed=5)), never)


def test_supervised_weights_are_the_same_however_batches_are_scheduled(tiny: Tiny) -> None:
    settings = (*FEW, "stages=['supervised']", "supervised.distillation=logit-matching")
    never = trained(tiny(*settings, "engine.overlap=never"))
    assert same(trained(tiny(*settings, "engine.overlap=always")), never)


def test_dropout_draws_the_same_beside_a_producer(tiny: Tiny) -> None:
    """The trainer's draws from torch's generator depend only on the step, not on the producer."""
    networks = []
    for overlap in ("never", "always"):
        task = build_task(tiny(*FEW, f"engine.overlap={overlap}"))
        network = task.new_network()
        network.network.register_forward_hook(
            lambda module, inputs, out: torch.nn.functional.dropout(out, 0.3, module.training)
        )
        fit(make_stage("pp", task, network))
        networks.append(network.export_state())
    assert same(*networks)


@pytest.mark.parametrize(("stage", "step"), [("pp", 5), ("p-ssl", 6)])
def test_a_resume_ahead_equals_an_uninterrupted_run_without(
    tiny: Tiny, tmp_path: Path, stage: str, step: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny(*FEW, "engine.overlap=never"), whole)
    config = tiny(*FEW, "engine.overlap=always", "engine.depth=4")
    with pytest.raises(Interrupted):
        train(config, parts, context=stop_after(stage, step))
    summary = train(config, parts, resume=True)
    assert same(weights(whole), weights(parts))
    assert summary["stages"]["p-ssl"]["overlap"] is True
    assert summary["stages"]["p-ssl"]["overlap_reason"] == 'overlap = "always"'


@pytest.mark.parametrize("name", ["pp", "supervised", "p-ssl"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_processes_share_the_same_samples(tiny: Tiny, name: str, size: int) -> None:
    task = build_task(tiny("p_ssl.method=uda"))
    alone = ready(stage_of(task, name))
    shares = [ready(stage_of(task, name, ProcessGroup(rank, size))) for rank in range(size)]
    for step in (0, 3, 100):
        whole = _tensors(alone.make_batch(step))
        parts = [_tensors(stage.make_batch(step)) for stage in shares]
        for field, value in whole.items():
            shared = torch.cat([part[field] for part in parts])
            if size > 2 and field in ("inputs", "weak", "strong"):
                # A convolution's rounding depends on the size of its batch: here thirds show it and halves do not.
                torch.testing.assert_close(shared, value, rtol=0, atol=1e-5)
            else:
                assert torch.equal(shared, value), field


def _tensors(batch: Any, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in batch._asdict().items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif value is not None:
            found |= _tensors(value, f"{name}.")
    return found


@pytest.mark.parametrize("overlap", ["never", "always"])
def test_no_graph_is_recorded_for_a_batch(tiny: Tiny, overlap: str) -> None:
    """Each thread has its own grad mode, which is on by default."""
    stage = stage_of(build_task(tiny(*FEW, f"engine.overlap={overlap}")), "p-ssl")
    honest, modes = stage.make, []

    def make(*inputs: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return honest(*inputs)

    stage.make = make  # type: ignore[method-assign]
    fit(stage)
    assert len(modes) >= 9
    assert not any(modes)


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["never", "always"])
@pytest.mark.parametrize("name", ["pp", "p-ssl"])
def test_an_exception_of_the_producer_reaches_the_run(tiny: Tiny, name: str, overlap: str) -> None:
    task = build_task(tiny(*FEW, f"engine.overlap={overlap}", "engine.depth=2"))
    done: list[int] = []
    stage = stage_of(task, name)
    honest = stage.batch_inputs

    def failing(step: int) -> Any:
        if step == 4:
            raise RuntimeError("the generator broke")
        return honest(step)

    stage.batch_inputs = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the generator broke") as raised:
        fit(stage, Context(on_step=lambda stage, step, steps: done.append(step)))
    assert raised.value.__notes__ == [f"while making the batch of step 5 of stage {name!r}"]
    assert any(entry.name == "failing" for entry in raised.traceback)
    # Batches that were waiting may be dropped, never more than that.
    assert done == list(range(1, len(done) + 1))
    assert 2 <= len(done) <= 4
    assert (len(done) == 4) or overlap == "always"


def test_a_trainer_that_fails_ends_its_producer(tiny: Tiny) -> None:
    task = build_task(tiny(*FEW, "engine.overlap=always"))
    threads: list[int] = []

    def die(stage: str, step: int, steps: int) -> None:
        threads.append(threading.active_count())
        if step == 3:
            raise KeyboardInterrupt

    stage = stage_of(task, "p-ssl")
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fit(stage, Context(on_step=die))
    assert threads[0] == before + 1
    assert threading.active_count() == before


# The profile ----------------------------------------------------------------------------------------------------------


def test_the_profile_of_an_overlapped_run(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(*FEW, "engine.overlap=always", "engine.depth=2"), tmp_path / "run", profile=True)
    stages = {stage.name: stage for stage in read_profile(tmp_path / "run").stages}
    for name, steps in (("pp", 7), ("p-ssl", 9)):
        stage = stages[name]
        (depth,) = [counter for counter in stage.counters if counter.name == "ring depth"]
        assert depth.count == steps
        assert 0 <= depth.mean <= depth.greatest <= 2
        lanes: dict[str, dict[tuple[str, ...], int]] = {}
        for span in stage.spans:
            lanes.setdefault(span.lane, {})[span.path] = span.count
        assert set(lanes) == {"main", "ptgm-fast producer"}
        main, producer = lanes["main"], lanes["ptgm-fast producer"]
        # Once per step on either side: the planning trial adds no synthesis span.
        assert main["ring wait",] == producer["generator",] == steps
        assert producer["ring wait",] >= 1
        assert "generator" not in {part for path in main for part in path}
        assert stage.overlap is not None
        assert stage.overlap.producer_seconds > 0
        assert stage.overlap.producer_wait_seconds > 0


def test_the_profile_of_a_run_without_overlap(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(*FEW, "engine.overlap=never"), tmp_path / "run", profile=True)
    for stage in read_profile(tmp_path / "run").stages:
        assert stage.overlap is None
        assert "ring depth" not in {counter.name for counter in stage.counters}
        assert {span.lane for span in stage.spans} <= {"main"}
        assert not [span for span in stage.spans if "ring wait" in span.path]


# Capture --------------------------------------------------------------------------------------------------------------


def test_capture_without_cuda_is_said_before_the_folder_exists(
    tiny_toml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    arguments = ["train", tiny_toml, "--out", out, "--set", "engine.capture=true"]
    monkeypatch.setattr(sys, "argv", ["ptgm-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "engine.capture = true replays a CUDA graph" in " ".join(said.split())
    assert "Traceback" not in said
    assert not out.exists()


def test_capture_without_cuda_is_refused_by_a_stage(tiny: Tiny) -> None:
    task = build_task(tiny("engine.capture=true"))
    with pytest.raises(UserError, match="the device is 'cpu'; leave it out, or set device"):
        stage_of(task, "pp")


# On a device ----------------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("capture", ["false", "true"])
@pytest.mark.parametrize("optimize", ["false", "true"])
def test_weights_are_the_same_on_a_gpu(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, optimize: str, capture: str
) -> None:
    # Without them two equal runs of cuDNN may differ.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = (*FEW, "device=cuda", "p_ssl.method=uda", f"source.optimize={optimize}")
    never = trained(tiny(*config, "engine.overlap=never"))
    for depth in (1, 3, 8):
        ahead = (*config, f"engine.capture={capture}", f"engine.depth={depth}")
        assert same(trained(tiny(*ahead, "engine.overlap=always")), never)
