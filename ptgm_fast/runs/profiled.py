"""Run under the profiler, with its files in the run's folder and the facts of the run's stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptgm_fast.config import RunConfig
from ptgm_fast.profiling import Profiler, profile
from ptgm_fast.runs.task import choose_device, versions
from ptgm_fast.training.context import Context


def profiled(
    run: Callable[[Context], dict[str, Any]],
    config: RunConfig,
    out: Path,
    context: Context,
    ops_steps: int,
) -> dict[str, Any]:
    """Call `run` with a profiled context and return its summary. The profile is also written if the run stops or fails.

    A run that takes no step (resuming a finished run, an error in the config) leaves the folder unchanged.
    """
    with profile(
        out,
        device=choose_device(config.device),
        stage=None,
        ops_steps=ops_steps,
        versions=versions(),
        after_a_step=True,
    ) as profiler:
        summary = run(profiler.watch(context))
        _tell_stages(profiler, summary)
    return summary


def _tell_stages(profiler: Profiler, summary: dict[str, Any]) -> None:
    for name, stage in summary["stages"].items():
        times = profiler.recorder.steps.get(name)
        if times is None:
            continue
        # A resumed stage's summary counts all its steps; the profile only those run by this process.
        here = times.count / stage["steps"]
        profiler.images(
            name,
            images_trained=round(stage["images_per_second"] * stage["seconds"] * here),
            images_synthesized=round(stage["images_synthesized"] * here),
        )
        saved = stage["seconds_saved"]
        profiler.decided(name, seconds_saved=None if saved is None else saved * here)
        decisions = (
            *("overlap_reason", "precision", "compile_reason", "compile_seconds"),
            *("reuse", "pool_bytes"),
        )
        profiler.decided(name, **{decision: stage[decision] for decision in decisions})
