"""The panel's picture: what each stage adds against the distance from the source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptgm_fast.runs.plots import FAINT, INK, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ptgm_fast.runs.panel import PanelRecord

# One row of axes each: the gains drawn there, by name in the record, with their legend texts. The first is filled, the
# second hollow and of another shape, so that they also differ in a greyscale print.
ROWS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("PP adds,\npoints over scratch", (("PP", ""),)),
    (
        "distillation adds,\npoints",
        (
            ("distillation after PP", "to PP"),
            ("distillation", "to training from scratch"),
        ),
    ),
    (
        "P-SSL adds,\npoints",
        (
            ("P-SSL", "to PP and distillation"),
            ("P-SSL with real images", "the same with real unlabelled images"),
        ),
    ),
)
LOOKS: tuple[dict[str, Any], ...] = (
    {"fmt": "D", "ms": 5, "capsize": 3, "elinewidth": 1.6, "color": SERIES[0]},
    {
        "fmt": "o",
        "ms": 8,
        "capsize": 5,
        "elinewidth": 0.9,
        "color": SERIES[1],
        "mfc": "none",
        "mew": 1.3,
    },
)
WIDTH, ROW_HEIGHT = 6.4, 1.75
# Minimum distance between the names of two targets, as a fraction of the axes' width.
APART = 0.145


def panel_figure(record: PanelRecord) -> Figure:
    """Three axes over distance, one per stage: gains in points of test accuracy, with standard errors over seeds."""
    targets = list(record.targets.values())
    distances = [target.distance for target in targets]
    least, greatest = min(distances), max(distances)
    margin = 0.07 * (greatest - least) or 0.01
    left, width = least - margin, greatest - least + 2 * margin
    label = f"Gains of each stage on {len(targets)} targets against their distance from the source"
    with drawing(WIDTH, 1.1 + ROW_HEIGHT * len(ROWS), label) as figure:
        rows = figure.subplots(len(ROWS), 1, sharex=True)
        for axis, (what, series) in zip(rows, ROWS, strict=True):
            axis.axhline(0, color=INK, lw=1)
            axis.grid(False, axis="x")
            for x in distances:
                axis.axvline(x, color=FAINT, lw=0.7, zorder=0)
            for number, (name, against) in enumerate(series):
                gains = [target.gains[name] for target in targets]
                # Both markers at the target's position, one inside the other: targets may be closer than a marker's width.
                axis.errorbar(
                    distances,
                    [found.mean for found in gains],
                    yerr=[found.error or 0 for found in gains],
                    lw=0,
                    label=against,
                    **LOOKS[number],
                )
            axis.set_ylabel(what)
            axis.margins(y=0.14)
            if len(series) > 1:
                axis.legend(loc="lower left", bbox_to_anchor=(0, 0.98), ncols=2, borderaxespad=0.1)
        rows[-1].set_xlim(left, left + width)
        rows[-1].set_xlabel(
            "distance from the source\n(mean entropy of the source classifier's soft labels, as a share of log K)"
        )
        _names(rows[0], [(x - left) / width for x in distances], [t.title for t in targets])
        seeds = len(record.seeds)
        errors = f"{seeds} seeds, standard errors" if seeds > 1 else "one seed, no errors"
        figure.suptitle(f"{record.labels_per_class} labels per class, {errors}", fontsize=10)
    return figure


def _names(axis: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Draw the targets' names above the axes, with lines to their places (fractions of the width)."""
    above = 1.24
    for place, room, name in zip(places, spread_out(places, APART), names, strict=True):
        axis.annotate(
            name.replace(" ", "\n"),
            xy=(place, 1.0),
            xytext=(room, above),
            xycoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def spread_out(places: Sequence[float], apart: float) -> list[float]:
    """Move ascending places to be at least `apart` from each other, with the least sum of squared moves.

    Groups of places that would overlap are spread evenly around their mean, until no two groups overlap.
    """
    groups: list[list[float]] = []
    for place in places:
        groups.append([place])
        while len(groups) > 1 and _end(groups[-2], apart) + apart > _start(groups[-1], apart):
            last = groups.pop()
            groups[-1] += last
    return [_start(group, apart) + apart * i for group in groups for i in range(len(group))]


def _start(group: Sequence[float], apart: float) -> float:
    return sum(group) / len(group) - apart * (len(group) - 1) / 2


def _end(group: Sequence[float], apart: float) -> float:
    return _start(group, apart) + apart * (len(group) - 1)
