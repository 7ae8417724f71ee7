"""The accuracy tables of README.md and docs/results.md, from the output of `ptgm-fast compare`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "scratch": "training from scratch",
    "logit-matching": "distillation, logit matching",
    "soft-target": "distillation, soft targets",
    "pp": "PP, then cross-entropy",
    "pp+soft-target": "PP, then soft targets",
    "pp+uda": "PP, then P-SSL with UDA (as published)",
    "p-ssl": "P-SSL from scratch",
    "pp+p-ssl": "**PP, then P-SSL** (default)",
}
BASELINES = ("logit-matching", "soft-target")


def table(comparison: Mapping[str, Any]) -> str:
    """One row per method: accuracy over the seeds, calibration error, seconds, images made; then the verdict."""
    seeds = len(comparison["seeds"])
    rows = [
        "| method | row | test accuracy, % | ECE | seconds | images synthesized |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, row in comparison["methods"].items():
        accuracy = f"{100 * row['mean']:.2f} ± {100 * row['std']:.2f}"
        accuracy = f"**{accuracy}**" if name == "pp+p-ssl" else accuracy
        rows.append(
            f"| {TITLES.get(name, name)} | `{name}` | {accuracy} | {row['ece']:.3f} | {row['seconds']:.0f} | {row['images_synthesized']:,} |"
        )
    told = f"Mean ± standard deviation over {seeds} seeds; median seconds."
    return "\n".join([*rows, "", f"{told} {comparison['verdict']}"]) + "\n"


def differences(comparison: Mapping[str, Any]) -> str:
    """Differences in test accuracy, paired by seed, in points with their standard error."""
    methods = comparison["methods"]
    best = max(
        (name for name in BASELINES if name in methods),
        key=lambda name: float(methods[name]["mean"]),
    )
    pairs = [
        ("pp+p-ssl", "scratch"),
        ("pp+p-ssl", best),
        ("pp+p-ssl", "pp"),
        ("pp+p-ssl", "pp+soft-target"),
        ("pp", "scratch"),
        ("p-ssl", "scratch"),
        ("pp+uda", "pp"),
    ]
    rows = ["| method | against | points |", "|---|---|---:|"]
    for one, other in pairs:
        if one in methods and other in methods:
            gain = paired(methods[one]["test_accuracy"], methods[other]["test_accuracy"])
            rows.append(f"| `{one}` | `{other}` | {gain} |")
    return "\n".join(rows) + "\n"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> str:
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    mean = round(statistics.fmean(points), 1) + 0.0  # -0.0 is 0.0
    if len(points) < 2:
        return f"{mean:+.1f}"
    return f"{mean:+.1f} ± {statistics.stdev(points) / len(points) ** 0.5:.1f}"
