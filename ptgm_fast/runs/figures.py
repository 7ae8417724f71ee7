"""The figures of runs and comparisons. Each is drawn once; `plots` saves it for the run folder or the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptgm_fast.profiling import Profile
from ptgm_fast.runs.artifacts import EvaluationRecord, Method, Pairs
from ptgm_fast.runs.plots import FAINT, INK, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ptgm_fast.runs.tune import Budget

# For shades in raster images, which a stylesheet cannot change: readable on white and on black.
ACCENT = (0.16, 0.50, 0.72)
# A legend above the axes, where it hides no data.
ABOVE: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "ncols": 3,
    "borderaxespad": 0.2,
}
WIDTH = 4.8


def sample_sheet(pairs: Pairs) -> Figure:
    """One row per target image: the image, its top soft labels, its pseudo samples."""
    rows, num_samples, _, height, width = pairs.pseudo.shape
    # A single axes in units of one tile (a hundred axes take two seconds to lay out): target, two tiles of text, samples.
    first = 3
    size = 0.8 * (first + num_samples), 0.8 * rows * height / width + 0.4
    with drawing(*size, "What target images asked the generator for") as figure:
        axis = figure.subplots()
        _tiles(axis, pairs.targets[:, None].float() / 255, 0)
        _tiles(axis, (pairs.pseudo + 1) / 2, first)
        for row in range(rows):
            asked = [f"{name}  {share:.2f}" for name, share in pairs.soft_labels[row].items()]
            middle: dict[str, Any] = {"y": row + 0.45, "va": "center"}
            axis.text(x=-0.1, s=pairs.class_names[row], ha="right", **middle)
            axis.text(
                x=2, s="\n".join(asked), ha="center", family="monospace", fontsize=8, **middle
            )
        for place, title in ((0.0, "target"), (1.5, "soft label"), (first, "pseudo samples")):
            axis.text(place, -0.15, title, va="bottom")
        axis.set(xlim=(0, first + num_samples), ylim=(rows, 0), aspect=height / width)
        axis.axis("off")
    return figure


def _tiles(axis: Any, tiles: Tensor, left: int) -> None:
    """Draw a grid of images [R, S, C, H, W] in [0, 1], one unit each, starting at x = left."""
    import torch.nn.functional as F

    rows, columns, channels, height, width = tiles.shape
    gap = max(1, width // 12)
    padded = F.pad(tiles.clamp(0, 1), (0, gap, 0, gap), value=1.0)
    # [R, S, C, H, W] -> [R * H, S * W, C]; for grey images the channel dimension is squeezed below.
    grid = padded.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), -1, channels)
    extent = (left, left + columns, rows, 0)
    axis.imshow(
        grid.squeeze(-1).numpy(),
        cmap="gray",
        vmin=0,
        vmax=1,
        extent=extent,
        interpolation="nearest",
    )


def curves(metrics: Sequence[Mapping[str, Any]], stages: Sequence[str]) -> Figure:
    """Loss terms over the steps and, below them, accuracies and other shares: one column per stage."""
    panels = {stage: _series([r for r in metrics if r["stage"] == stage]) for stage in stages}
    num_rows = 1 + any(shares for _, shares in panels.values())
    what = "loss and share" if num_rows == 2 else "loss"
    with drawing(
        WIDTH * len(stages), 2.6 * num_rows, f"{', '.join(stages)}: {what} over steps"
    ) as figure:
        axes = figure.subplots(num_rows, len(stages), squeeze=False, sharex="col")
        for column, stage in enumerate(stages):
            for axis, title, series in zip(
                axes[:, column], ("loss", "share"), panels[stage], strict=False
            ):
                for number, (name, points) in enumerate(series.items()):
                    axis.plot(
                        *zip(*points, strict=True),
                        color=SERIES[number % len(SERIES)],
                        label=name.replace("_", " "),
                        lw=1.6,
                        marker="o" if len(points) < 30 else None,
                        ms=3,
                    )
                axis.set_ylabel(title)
                axis.set_ylim(bottom=0, top=1.02 if title == "share" else None)
                if series:
                    axis.legend(**ABOVE)
            axes[-1, column].set_xlabel(f"step of {stage}")
            axes[-1, column].set_xlim(left=0)
    return figure


Series = dict[str, list[tuple[int, float]]]


def _series(records: Sequence[Mapping[str, Any]]) -> tuple[Series, Series]:
    """What a stage logged, as points by name: the losses, total first, and the shares, which are in [0, 1]."""
    series: Series = {}
    for record in records:
        for name, value in record.items():
            if name not in ("stage", "step", "lr", "images_per_second"):
                series.setdefault(name, []).append((record["step"], value))
    shares = {
        n: series.pop(n)
        for n in list(series)
        if "accuracy" in n or n.startswith("mask_rate") or n in ("agreement", "kept")
    }
    for name in [n for n in shares if n.startswith("mask_rate")]:
        # Without a threshold no samples are masked, and a constant line at one is useless.
        if all(value == 1 for _, value in shares[name]):
            del shares[name]
    if set(series) == {"loss", "cross_entropy"}:
        # The only term equals the total.
        del series["cross_entropy"]
    return dict(sorted(series.items(), key=lambda item: item[0] != "loss")), shares


def time_bars(profile: Profile) -> Figure:
    """Seconds of each stage with its phases stacked; one color for everything without a span."""
    stages = [stage for stage in profile.stages if stage.seconds > 0]
    phases = {stage.name: stage.phases() for stage in stages if stage.spans}
    totals: dict[str, float] = {}
    for found in phases.values():
        for phase, seconds in found.items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    whole = sum(stage.seconds for stage in stages) or 1.0
    # A phase below half a percent of the run would be too thin to see.
    named = [p for p in totals if totals[p] >= 0.005 * whole and p != "other"]
    named = sorted(named, key=lambda phase: -totals[phase])[: len(SERIES)]
    label = f"Seconds by stage and phase, {whole:.1f} s in all"
    height = 1.0 + 0.4 * len(stages) + 0.22 * ((len(named) + 2) // 2)
    with drawing(WIDTH, height, label) as figure:
        axis = figure.subplots()
        for row, stage in enumerate(stages):
            left = 0.0
            for number, phase in enumerate(named):
                seconds = phases.get(stage.name, {}).get(phase, 0.0)
                axis.barh(row, seconds, left=left, color=SERIES[number], height=0.6)
                left += seconds
            axis.barh(row, stage.seconds - left, left=left, color=FAINT, height=0.6)
            axis.annotate(f" {stage.seconds:.1f} s", (stage.seconds, row), va="center")
        for number, phase in enumerate(named):
            share = f"{phase} ({totals[phase] / whole:.0%})"
            axis.plot([], [], "s", color=SERIES[number], label=share)
        rest = 1 - sum(totals[phase] for phase in named) / whole
        axis.plot([], [], "s", color=FAINT, label=f"all else ({rest:.0%})")
        axis.set_yticks(range(len(stages)), [stage.name for stage in stages])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_xlim(left=0)
        axis.set_xlabel("seconds")
        axis.grid(visible=False, axis="y")
        figure.legend(*axis.get_legend_handles_labels(), ncols=2, loc="outside lower center")
    return figure


def confusion(record: EvaluationRecord) -> Figure:
    """Counts by true and predicted class; the shade is the share within the true class."""
    import numpy as np

    counts = np.asarray(record.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    number = len(counts)
    side = min(6.4, max(3.6, 1.6 + 0.32 * number))
    label = f"Confusion matrix of {record.images:,} test images, accuracy {record.accuracy:.2%}"
    with drawing(side, side, label) as figure:
        axis = figure.subplots()
        shades = np.empty((number, number, 4))
        shades[..., :3], shades[..., 3] = ACCENT, shares * 0.85
        axis.imshow(shades, interpolation="nearest")
        axis.grid(visible=False)
        axis.set_xlabel("predicted")
        axis.set_ylabel("true")
        if number <= 20:
            axis.set_xticks(range(number), record.class_names, rotation=45 if number > 5 else 0)
            axis.set_yticks(range(number), record.class_names)
            for row in range(number):
                for column in range(number):
                    if count := record.confusion[row][column]:
                        axis.text(column, row, f"{count}", ha="center", va="center", fontsize=8)
    return figure


def reliability(record: EvaluationRecord) -> Figure:
    """Accuracy against confidence for each confidence bin, and the number of images in it."""
    number = len(record.reliability)
    edges = [i / number for i in range(number)]
    label = f"Reliability diagram, expected calibration error {record.ece:.3f}"
    with drawing(WIDTH, 4.4, label) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        accuracy = [bin_.accuracy for bin_ in record.reliability]
        bars: dict[str, Any] = {"width": 1 / number, "align": "edge", "lw": 0}
        upper.bar(edges, accuracy, color=SERIES[0], label="accuracy", **bars)
        upper.plot([0, 1], [0, 1], color=INK, lw=1, ls="--", label="perfectly calibrated")
        upper.set_ylabel("accuracy")
        upper.set_ylim(0, 1)
        upper.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        counts = [bin_.count for bin_ in record.reliability]
        lower.bar(edges, counts, color=FAINT, **bars)
        lower.set_ylabel("images")
        lower.set_xlabel(f"confidence (expected calibration error {record.ece:.3f})")
        lower.set_xlim(0, 1)
    return figure


def comparison(methods: Mapping[str, Method], title: str = "") -> Figure:
    """One row per method: mean test accuracy in percent, standard deviation over seeds, one dot per seed."""
    names = list(methods)
    every = [100 * accuracy for method in methods.values() for accuracy in method.test_accuracy]
    margin = max(0.5, 0.12 * (max(every) - min(every)))
    # Differences look larger on an axis that starts above zero, so its label says where it starts.
    start = max(0, math.floor(min(every) - 2 * margin))
    num_seeds = max(len(method.test_accuracy) for method in methods.values())
    label = f"Test accuracy of {len(names)} methods over {num_seeds} seeds"
    with drawing(1.25 * WIDTH, 1.3 + 0.4 * len(names), label) as figure:
        axis = figure.subplots()
        for row, method in enumerate(methods.values()):
            mean, deviation = 100 * method.mean, 100 * method.std
            color = SERIES[0] if method.images_synthesized else SERIES[1]
            axis.errorbar(mean, row, xerr=deviation, fmt="D", ms=6, capsize=4, color=color)
            accuracies = [100 * a for a in method.test_accuracy]
            axis.plot(accuracies, [row] * len(accuracies), "o", ms=3, color=INK, alpha=0.55)
            axis.annotate(
                f"{mean:.1f}", (1.01, row), xycoords=("axes fraction", "data"), va="center"
            )
        axis.plot([], [], "D", color=SERIES[0], label="uses pseudo images")
        axis.plot([], [], "D", color=SERIES[1], label="does not")
        axis.legend(**ABOVE)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(start, min(101.0, max(every) + 2 * margin))
        axis.set_xlabel(f"test accuracy, % ± standard deviation (axis starts at {start})")
        figure.suptitle(title, fontsize=10)
    return figure


def frontier(first: Sequence[Budget], found: Sequence[Budget], chosen: Budget) -> Figure:
    """Validation accuracy against seconds: budgets tried on one seed, those kept (with error bars), and the chosen one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    label = f"Accuracy and seconds of {len(first)} budgets; chosen: {chosen.seconds:.1f} s"
    with drawing(1.25 * WIDTH, 4.2, label) as figure:
        axis = figure.subplots()
        axis.plot(
            [b.seconds for b in first],
            [100 * b.accuracy for b in first],
            "o",
            ms=4,
            color=SERIES[7],
            alpha=0.5,
            label="one seed",
        )
        for name, color, shown in (
            (f"{chosen.seeds} seeds", SERIES[0], found),
            ("the config", INK, [b for b in found if b.number == 0]),
            ("chosen", SERIES[1], [chosen]),
        ):
            axis.errorbar(
                [b.seconds for b in shown],
                [100 * b.accuracy for b in shown],
                yerr=[100 * b.error if b.number else 0.0 for b in shown],
                fmt="D",
                ms=6,
                capsize=4,
                color=color,
                label=name,
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("seconds of training, synthesis included (logarithmic)")
        axis.set_ylabel("validation accuracy, % ± s.e. of the difference")
        axis.legend(**ABOVE)
    return figure
