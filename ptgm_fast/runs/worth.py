"""What pseudo data gains and what it costs: points of accuracy, and seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptgm_fast.runs.artifacts import COMPARISON, read_comparison, read_summary
from ptgm_fast.runs.folder import RunFolder

# A run's folder of baselines, in the format of `compare`, and the name of the run's own row in it.
BASELINES_FOLDER, THIS_RUN = "baselines", "this run"


def gains_of(folder: Path) -> list[str]:
    """What the stages of a finished run gained, one line each: on validation images, and against its baselines."""
    run = RunFolder(folder)
    if not run.summary.is_file():
        return []
    lines = list(validated(run.read_metrics(), read_summary(folder)["stages"]))
    if (folder / BASELINES_FOLDER / COMPARISON).is_file():
        lines.append(read_comparison(folder / BASELINES_FOLDER)["verdict"])
    return lines


def validated(
    metrics: Sequence[Mapping[str, Any]], stages: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The first and the best validation accuracy of each stage with at least two, and the stage's duration.

    Before its first step, a target stage has a head with random weights, so its first validation is the earliest figure.
    """
    for name, stage in stages.items():
        found = [
            (record["validation_accuracy"], record["step"])
            for record in metrics
            if record["stage"] == name and "validation_accuracy" in record
        ]
        if len(found) < 2:
            continue
        (first, early), (best, late) = found[0], max(found, key=lambda point: point[0])
        yield (
            f"{name}: validation accuracy {100 * first:.2f} % at step {early}, at best {100 * best:.2f} % at step {late}; "
            f"the stage took {stage['seconds'] / 60:.1f} min"
        )
