"""`ptgm-fast bench`."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.profiling.benchmarks import read_benchmarks
from ptgm_fast.profiling.regressions import Comparison, compare

HOW = """The throughput suites are in the source tree, not in the installed package:
  make bench          all of them, a file benchmarks/results/DATE-MACHINE.json, the tables and the plots
  make bench-gpu      those that run on a GPU, timed by CUDA events
  pytest benchmarks/kernels --benchmark-enable --benchmark-only    one suite
Two such files against each other: ptgm-fast bench --compare OLD.json NEW.json"""
COLOURS = {"slower": "red", "faster": "green", "same": "dim", "noise unknown": "yellow"}


def run(files: tuple[Path, Path] | None) -> None:
    if files is None:
        console.print(HOW, soft_wrap=True, markup=False)
        return
    old, new = (read_benchmarks(path) for path in files)
    found = compare(old, new)
    console.print(table(found))
    for note in found.notes:
        console.print(note, soft_wrap=True, markup=False)
    count = len(found.regressions)
    if count:
        console.print(f"{count} of {len(found.changes)} slower beyond the noise")
        raise typer.Exit(1)
    console.print(f"none of {len(found.changes)} slower beyond the noise")


def table(found: Comparison) -> Table:
    """One row a contender of ours: old and new time, their ratio, that against the peers, the bound and the verdict."""
    result = Table(title="New against old", title_justify="left")
    result.add_column("case")
    for name in ("old", "new", "new / old", "against peers", "counts beyond"):
        result.add_column(name, justify="right")
    result.add_column("verdict")
    for change in found.changes:
        beyond = "-" if change.bound is None else f"±{change.bound - 1:.1%}"
        peers = "-" if change.against_peers is None else f"{change.against_peers:.3f}"
        result.add_row(
            f"{change.case}: {change.contender}",
            duration(change.old),
            duration(change.new),
            f"{change.ratio:.3f}",
            peers,
            beyond,
            f"[{COLOURS[change.verdict]}]{change.verdict}[/]",
        )
    return result


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
