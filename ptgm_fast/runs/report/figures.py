"""The figures of a report: matplotlib's SVG, with text as text and colours that the page's stylesheet gives."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ptgm_fast.profiling import Profile
from ptgm_fast.runs.evidence import EvaluationRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ptgm_fast.runs.report.load import Methods

# Colours that stand for the stylesheet's: each figure is drawn once and read in light and dark.
INK, FAINT = "#010101", "#010102"
SERIES = tuple(f"#0102{number:02x}" for number in range(1, 11))
STYLES = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)},
}
# For shades in pictures, which a stylesheet cannot reach: readable on white and on black.
ACCENT = (0.16, 0.50, 0.72)
# A legend over the axes hides no data.
ABOVE: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "ncols": 3,
    "borderaxespad": 0.2,
}
WIDTH = 4.8
RC = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def figure_for(width: float, height: float, into: list[str], label: str) -> Iterator[Figure]:
    """Draw in the block; `into` then has the SVG. label: what a screen reader says."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    into.append(_for_page(buffer.getvalue(), label))


_numbers = iter(range(1, 10**9))


def _for_page(svg: str, label: str) -> str:
    """An inline element: its own names, the page's colours, a label, no fixed size."""
    svg = svg[svg.index("<svg") :]
    prefix = f"f{next(_numbers)}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = svg.replace('href="#', f'href="#{prefix}').replace("url(#", f"url(#{prefix}")
    for colour, style in STYLES.items():
        svg = svg.replace(colour, style)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    width = float(re.search(r'width="([\d.]+)pt"', opening)[1])  # type: ignore[index]
    opening = re.sub(r' (width|height)="[\d.]+pt"', "", opening)
    name = html.escape(label, quote=True)
    return f'{opening} role="img" aria-label="{name}" style="max-width: {width:.0f}pt"><title>{name}</title>{rest}'


def drawn(draw: Callable[[list[str]], None]) -> str:
    into: list[str] = []
    draw(into)
    return into[0]


def curves(metrics: Sequence[Mapping[str, Any]], stage: str) -> str | None:
    """Loss terms and accuracies of a stage over its steps; None where none was logged."""
    records = [r for r in metrics if r["stage"] == stage]
    skip = ("stage", "step", "lr", "images_per_second")
    names = list(dict.fromkeys(name for r in records for name in r if name not in skip))
    shares = [n for n in names if "accuracy" in n or n in ("mask_rate", "agreement")]
    losses = sorted((n for n in names if n not in shares), key=lambda n: n != "loss")
    panels = [p for p in (("loss", losses), ("share", shares)) if p[1]]
    if not panels:
        return None

    def draw(into: list[str]) -> None:
        label = f"{stage}: {' and '.join(p[0] for p in panels)} over {records[-1]['step']} steps"
        with figure_for(WIDTH, 2.6 * len(panels), into, label) as figure:
            axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
            for axis, (title, shown) in zip(axes, panels, strict=True):
                for number, name in enumerate(shown):
                    points = [(r["step"], r[name]) for r in records if name in r]
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
                axis.legend(**ABOVE)
            axes[-1].set_xlabel("step")
            axes[-1].set_xlim(left=0)

    return drawn(draw)


def time_bars(profile: Profile) -> str:
    """Seconds of each stage, its phases stacked; one colour for what no span divides."""
    stages = [stage for stage in profile.stages if stage.seconds > 0]
    phases = {stage.name: stage.phases() for stage in stages if stage.spans}
    totals: dict[str, float] = {}
    for found in phases.values():
        for phase, seconds in found.items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    whole = sum(stage.seconds for stage in stages) or 1.0
    # What is under half a percent of the run would be a line without a width.
    named = [p for p in totals if totals[p] >= 0.005 * whole and p != "other"]
    named = sorted(named, key=lambda phase: -totals[phase])[: len(SERIES)]

    def draw(into: list[str]) -> None:
        label = f"Seconds by stage and phase, {whole:.1f} s in all"
        height = 1.0 + 0.4 * len(stages) + 0.22 * ((len(named) + 2) // 2)
        with figure_for(WIDTH, height, into, label) as figure:
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

    return drawn(draw)


def confusion(record: EvaluationRecord) -> str:
    """Counts by true and predicted class; the shade is the share of the true class."""
    import numpy as np

    counts = np.asarray(record.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    number = len(counts)
    side = min(6.4, max(3.6, 1.6 + 0.32 * number))

    def draw(into: list[str]) -> None:
        label = f"Confusion matrix of {record.images:,} test images, accuracy {record.accuracy:.2%}"
        with figure_for(side, side, into, label) as figure:
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
                        if counts[row, column]:
                            axis.text(
                                column,
                                row,
                                f"{int(counts[row, column])}",
                                ha="center",
                                va="center",
                                fontsize=8,
                            )

    return drawn(draw)


def reliability(record: EvaluationRecord) -> str:
    """Accuracy of each bin of confidence against the confidence itself, and how many images fall into it."""
    number = len(record.reliability)
    edges = [i / number for i in range(number)]

    def draw(into: list[str]) -> None:
        label = f"Reliability diagram, expected calibration error {record.ece:.3f}"
        with figure_for(WIDTH, 4.4, into, label) as figure:
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
            accuracy = [bin_.accuracy for bin_ in record.reliability]
            upper.bar(
                edges,
                accuracy,
                width=1 / number,
                align="edge",
                color=SERIES[0],
                label="accuracy",
                lw=0,
            )
            upper.plot([0, 1], [0, 1], color=INK, lw=1, ls="--", label="perfectly calibrated")
            upper.set_ylabel("accuracy")
            upper.set_ylim(0, 1)
            upper.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
            counts = [bin_.count for bin_ in record.reliability]
            lower.bar(edges, counts, width=1 / number, align="edge", color=FAINT, lw=0)
            lower.set_ylabel("images")
            lower.set_xlabel(f"confidence (expected calibration error {record.ece:.3f})")
            lower.set_xlim(0, 1)

    return drawn(draw)


def comparison(report: Methods) -> str:
    """Mean test accuracy of each method, its standard deviation over seeds, a dot a seed."""
    methods = report.methods
    names = list(methods)

    def draw(into: list[str]) -> None:
        label = f"Test accuracy of {len(names)} methods over {len(report.seeds)} seeds"
        with figure_for(WIDTH, 1.2 + 0.4 * len(names), into, label) as figure:
            axis = figure.subplots()
            for row, name in enumerate(names):
                method = methods[name]
                pseudo = method.images_synthesised > 0
                axis.errorbar(
                    100 * method.mean,
                    row,
                    xerr=100 * method.std,
                    fmt="D",
                    ms=6,
                    capsize=4,
                    color=SERIES[0] if pseudo else SERIES[1],
                )
                accuracies = [100 * a for a in method.test_accuracy]
                axis.plot(accuracies, [row] * len(accuracies), "o", ms=3, color=INK, alpha=0.55)
            axis.plot([], [], "D", color=SERIES[0], label="uses pseudo images")
            axis.plot([], [], "D", color=SERIES[1], label="does not")
            axis.legend(**ABOVE)
            axis.set_yticks(range(len(names)), names)
            axis.invert_yaxis()
            axis.margins(y=0.12)
            axis.set_xlabel("test accuracy, % (± standard deviation)")

    return drawn(draw)
