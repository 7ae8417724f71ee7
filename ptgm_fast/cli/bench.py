"""`ptgm-fast bench`."""

from __future__ import annotations

from pathlib import Path

import typer
from rich import box
from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.profiling.benchmarks import duration, read_benchmarks
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
    """One row a contender of ours: old and new time, their ratio, the ratio to the peers, beyond what it counts, the verdict."""
    result = Table(
        title="New against old", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0)
    )
    # On a narrow terminal the others' headings wrap, not the names.
    result.add_column("case", min_width=26)
    for name in ("old", "new", "ratio", "to peers", "beyond"):
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
