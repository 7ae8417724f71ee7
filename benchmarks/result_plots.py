"""The plots of the throughput suites, from one result file. White background: they are also shown on dark pages."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter
from result_file import Benchmarks, CaseResult, Contender
from result_tables import RECIPES, WHOLE_TRAINING

from ptgm_fast.runs.plots import new_figure, save

OWN, ONE_THREAD, GRID = "#0b6e8a", "#e08b2c", "#d5dbe0"
PEERS = ("#5b6770", "#a05a8c", "#8a7f2c", "#c0504d")


def ratio(own: Contender, peer: Contender) -> tuple[float, float, float]:
    """How many times as long the peer takes: the geometric mean over rounds, and one standard deviation to either side."""
    logs = [math.log(b / a) for a, b in zip(own.seconds, peer.seconds, strict=True)]
    middle = statistics.fmean(logs)
    deviation = statistics.stdev(logs) if len(logs) > 1 else 0.0
    return math.exp(middle), math.exp(middle - deviation), math.exp(middle + deviation)


def without_threads(case: CaseResult) -> str:
    return re.sub(r", (\d+ threads|GPU)$", "", case.name)


def plain(value: float, _: int) -> str:
    return f"{value:g}"


def clean(axis: Any, *, along: str) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis=along, color=GRID, lw=0.8, zorder=0)
    axis.set_axisbelow(True)


def ratios(results: Benchmarks, path: Path) -> None:
    """One row per case: the fastest peer's time over ours on a logarithmic axis. Right of the line at 1, ours is faster."""
    rows: dict[str, list[CaseResult]] = {}
    for case in results.cases:
        if case.best_peer and case.of_role("own") and not case.lowered:
            rows.setdefault(without_threads(case), []).append(case)
    names = list(rows)
    figure = new_figure(8.4, 1.6 + 0.215 * len(names))
    axis = figure.subplots()
    named: set[str] = set()
    for row, name in enumerate(names):
        for case in rows[name]:
            peer = case.best_peer
            assert peer is not None
            middle, low, high = ratio(case.of_role("own")[0], peer)
            single = case.threads == 1
            label = "GPU" if results.device == "cuda" else "1 thread" if single else "2 threads"
            axis.errorbar(
                middle,
                row + (0.16 if single else -0.16) * (len(rows[name]) > 1),
                xerr=[[middle - low], [high - middle]],
                fmt="o",
                ms=4.5,
                lw=1.2,
                color=ONE_THREAD if single else OWN,
                label=None if label in named else label,
                zorder=3,
            )
            named.add(label)
    axis.axvline(1, color="black", lw=1, zorder=2)
    axis.set_xscale("log")
    # 1, 2 and 5 of each decade, as plain numbers.
    low, high = axis.get_xlim()
    ticks = [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(plain))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("time of the fastest other way / time of ours (bars: spread between rounds)")
    axis.set_title(f"{results.machine.title}, {results.date}", fontsize=10, loc="left")
    # Above the axes, since there may be dots anywhere inside.
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    clean(axis, along="x")
    save(figure, path)


def whole_trainings(results: Benchmarks, path: Path) -> None:
    """One bar per way to train the default task: seconds, with the final accuracy. Plain loops are channels-last."""
    case = next((c for c in results.cases if c.name == WHOLE_TRAINING), None)
    if case is None:
        return
    found = {contender.name: contender for contender in case.contenders}
    bars = [(label, found[names[-1]]) for label, names, _ in RECIPES if names[-1] in found]
    # As wide as the panel's picture, which is next to it in README.md.
    figure = new_figure(7.04, 1.2 + 1.1 * len(bars))
    axis = figure.subplots()
    for row, (label, contender) in enumerate(bars):
        own = contender.role == "own"
        axis.barh(row, contender.median, height=0.5, color=OWN if own else PEERS[0])
        accuracy = contender.facts.get("test accuracy")
        told = f", {100 * accuracy:.1f} % accurate" if isinstance(accuracy, float) else ""
        text = f"{label}: {contender.median:.0f} s{told}"
        axis.text(0, row - 0.32, text, va="bottom", fontsize=12, weight="bold" if own else None)
    axis.set_yticks([])
    axis.set_ylim(len(bars) - 0.5, -0.75)
    axis.set_xlabel("seconds of a whole training, letters to digits, 2 threads", fontsize=11)
    axis.set_title(f"{results.machine.title}, {results.date}", fontsize=10, loc="left")
    clean(axis, along="x")
    save(figure, path)


def scaling(results: Benchmarks, path: Path) -> None:
    """Images per second against batch size, one panel per generator, for ours and each peer, on the most threads measured."""
    panels: dict[str, list[CaseResult]] = {}
    for case in results.cases:
        if case.suite == "generators" and case.images:
            panels.setdefault(re.sub(r", batch.*", "", case.name), []).append(case)
    for name, cases in panels.items():
        most = max(case.threads or 0 for case in cases)
        of_most = [case for case in cases if (case.threads or 0) == most]
        panels[name] = sorted(of_most, key=lambda case: case.images or 0)
    if not panels:
        return
    figure = new_figure(3.4 * len(panels), 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    peers = sorted({p.name for cases in panels.values() for case in cases for p in case.of_role("peer")})  # fmt: skip
    colors = dict(zip(peers, PEERS, strict=False))
    for axis, (name, cases) in zip(axes, sorted(panels.items()), strict=True):
        batches = [case.images for case in cases]
        for contender in cases[0].contenders:
            own = contender.role == "own"
            rates = [
                case.images / next(c for c in case.contenders if c.name == contender.name).median  # type: ignore[operator]
                for case in cases
            ]
            axis.plot(
                batches,
                rates,
                marker="o",
                ms=5 if own else 3.5,
                lw=2.2 if own else 1.3,
                color=OWN if own else colors[contender.name],
                label=f"{contender.name} (ours)" if own else contender.name,
                zorder=4 if own else 3,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(batches, [str(batch) for batch in batches])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("batch")
        clean(axis, along="both")
    axes[0].set_ylabel("images/s")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    threads = next(iter(panels.values()))[0].threads
    suffix = f", {threads} threads" if threads else ""
    figure.suptitle(f"{results.machine.title}{suffix}, {results.date}", fontsize=10, x=0.01, ha="left")  # fmt: skip
    save(figure, path)
