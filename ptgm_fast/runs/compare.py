"""Every method on the same data, network, budget of target steps and seeds; and whether the pseudo data helped."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptgm_fast.config import RunConfig, config_to_toml, with_method
from ptgm_fast.runs import plots
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.task import build_task, versions
from ptgm_fast.runs.train import Progress, run_stages, summarise
from ptgm_fast.training.context import Context

DEFAULT_METHODS = (
    "scratch",
    "logit-matching",
    "soft-target",
    "pp",
    "pp+soft-target",
    "pp+uda",
    "p-ssl",
    "pp+p-ssl",
)


@dataclass(frozen=True)
class Row:
    """One method on one seed."""

    method: str
    seed: int
    test_accuracy: float
    val_accuracy: float | None
    ece: float
    seconds: float
    images_synthesised: int


def compare(
    config: RunConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    context: Context | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Run every method on every seed in the folder `out`; returns what compare.json holds.

    Pseudo pre-training runs once a seed and is shared by the methods that use it; its seconds and images
    count for each of them. Raises ValueError for an unknown method and UserError as `train` does; rows that
    are finished are in metrics.jsonl whatever happens later.
    """
    configs = {method: with_method(config, method) for method in methods}
    context = context or Context()
    # What does not fit is found before the folder exists.
    task = build_task(config.model_copy(update={"seed": seeds[0]}))
    folder = RunFolder.create(out)
    folder.write_text(folder.config, config_to_toml(config))
    rows: list[Row] = []
    for seed in seeds:
        if seed != task.config.seed:
            task = build_task(config.model_copy(update={"seed": seed}), task.source)
        pre_trained: Progress | None = None
        for method in methods:
            chosen = replace(task, config=configs[method].model_copy(update={"seed": seed}))
            start = Progress(task.new_network())
            if chosen.config.stages[0] == "pp":
                if pre_trained is None:
                    only_pp = replace(
                        chosen, config=chosen.config.model_copy(update={"stages": ("pp",)})
                    )
                    pre_trained = run_stages(only_pp, start, context)
                start = copy.deepcopy(pre_trained)
            progress = run_stages(chosen, start, context)
            target = summarise(chosen, progress)["target"]
            row = Row(
                method=method,
                seed=seed,
                test_accuracy=target["test_accuracy"],
                val_accuracy=target["val_accuracy"],
                ece=target["ece"],
                seconds=sum(r.seconds for r in progress.results),
                images_synthesised=sum(r.images_synthesised for r in progress.results),
            )
            rows.append(row)
            folder.append_metrics(vars(row))
            on_row(row)
    summaries = {method: _summary([r for r in rows if r.method == method]) for method in methods}
    report = {
        "task": config.task,
        "seeds": list(seeds),
        "device": str(task.device),
        "versions": versions(),
        "methods": summaries,
        "verdict": verdict(summaries),
    }
    folder.write_json(folder.path / "compare.json", report)
    plots.comparison(
        summaries,
        f"{config.task}: {config.data.labels_per_class} labels a class, {len(seeds)} seed(s)",
        folder.path / "compare.png",
    )
    return report


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    accuracies = [r.test_accuracy for r in rows]
    validated = [r.val_accuracy for r in rows if r.val_accuracy is not None]
    return {
        "test_accuracy": accuracies,
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(rows) > 1 else 0.0,
        "val_accuracy": validated,
        "ece": statistics.fmean(r.ece for r in rows),
        "seconds": statistics.median(r.seconds for r in rows),
        "images_synthesised": rows[0].images_synthesised,
    }


def verdict(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: what each stage's pseudo data added, in points of test accuracy, paired by seed."""
    parts = []
    for stage, with_it, without in (
        ("PP", "pp", "scratch"),
        ("P-SSL", "p-ssl", "scratch"),
        ("P-SSL after PP", "pp+p-ssl", "pp"),
    ):
        if with_it in methods and without in methods:
            pairs = zip(
                methods[with_it]["test_accuracy"], methods[without]["test_accuracy"], strict=True
            )
            gains = [100 * (a - b) for a, b in pairs]
            parts.append(
                f"{stage} {_judge(gains)} {statistics.fmean(gains):+.1f} points ({with_it} against {without})"
            )
    if not parts:
        return "Did the pseudo data help? Add scratch and pp or p-ssl to --methods to find out."
    return "Did the pseudo data help? " + "; ".join(parts) + "."


def _judge(gains: Sequence[float]) -> str:
    """ "helped" or "hurt" where the mean exceeds two standard errors over seeds; else it cannot be told apart."""
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return "on one seed:"
    error = statistics.stdev(gains) / len(gains) ** 0.5
    if abs(mean) <= 2 * error:
        return "made no clear difference:"
    return "helped:" if mean > 0 else "hurt:"
