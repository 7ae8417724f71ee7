"""Steps in which the host never waits for the device: on a GPU with torch's sync debug mode, elsewhere with a stand-in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ptgm_fast.config import RunConfig
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.context import Context
from ptgm_fast.training.loop import fit

sys.path.insert(0, str(Path(__file__).parent))
from host_sync import watched

Tiny = Callable[..., RunConfig]
# Logs, validations and checkpoints read values, so there are none before the last step.
QUIET = (
    *(f"pp.{what}" for what in ("steps=12", "log_every=12", "checkpoint_every=0")),
    *(f"training.{what}" for what in ("steps=12", "log_every=12", "checkpoint_every=0")),
    "training.validate_every=0",
)


@pytest.mark.parametrize("overlap", ["never", "always"])
@pytest.mark.parametrize("stage", ["pp", "p-ssl", "supervised"])
def test_the_alarm_is_on_in_the_steps_between(tiny: Tiny, stage: str, overlap: str) -> None:
    """The stand-in records at which step which mode was set; the real one would catch a loop that logs in between."""
    modes: list[tuple[int, str]] = []
    at = [0]
    task = build_task(tiny(*QUIET, f"engine.overlap={overlap}"))
    with watched(lambda mode: modes.append((at[0], mode))) as raise_alarm:

        def on_step(name: str, step: int, steps: int) -> None:
            at[0] = step
            raise_alarm(name, step, steps)

        fit(make_stage(stage, task, task.new_network()), Context(on_step=on_step))
    assert modes == [(2, "error"), (11, "default"), (12, "default")]


def test_the_alarm_is_taken_back_after_a_failure() -> None:
    modes: list[str] = []

    def failing() -> None:
        with watched(modes.append) as raise_alarm:
            raise_alarm("pp", 2, 9)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert modes == ["error", "default"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize(
    "schedule",
    [("engine.overlap=never",), ("engine.overlap=always",), ("engine.overlap=always", "engine.capture=true")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("pp", ()),
        ("pp", ("synthesis.images=64",)),
        ("supervised", ("supervised.distillation=soft-target",)),
        ("p-ssl", ()),
        ("p-ssl", ("p_ssl.method=uda", "p_ssl.teacher=ema")),
        ("p-ssl", ("p_ssl.method=fixmatch", "p_ssl.batch_norm=concat", "training.gradient_clip=1.0")),
    ],
    ids=str,
)  # fmt: skip
def test_no_step_waits_for_the_gpu(
    tiny: Tiny, stage: str, settings: tuple[str, ...], schedule: tuple[str, ...]
) -> None:
    config = tiny(*QUIET, *settings, *schedule, "device=cuda", "source.optimize=true")
    task = build_task(config)
    with watched(torch.cuda.set_sync_debug_mode) as on_step:
        fit(make_stage(stage, task, task.new_network()), Context(on_step=on_step))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_number_read_on_the_host_is_noticed_on_a_gpu(tiny: Tiny) -> None:
    """The sync debug mode itself works: a stage that reads its loss in every step raises."""
    task = build_task(tiny(*QUIET, "device=cuda"))
    stage = make_stage("pp", task, task.new_network())
    honest = stage.losses

    def reading(*arguments: object) -> dict[str, torch.Tensor]:
        terms = honest(*arguments)  # type: ignore[arg-type]
        float(terms["loss"])
        return terms

    stage.losses = reading  # type: ignore[method-assign,assignment]
    with (
        watched(torch.cuda.set_sync_debug_mode) as on_step,
        pytest.raises(RuntimeError, match="synchronizing CUDA operation"),
    ):
        fit(stage, Context(on_step=on_step))
