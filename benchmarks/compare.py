"""Compare two result files: what became slower, beyond the noise of both?

python benchmarks/compare.py OLD.json NEW.json

Exits with 1 if one of our contenders became slower, with 0 if none did, with 2 if the files cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from regressions import Comparison, compare
from result_file import duration, read_benchmarks
from rich import box
from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.errors import UserError

COLORS = {"slower": "red", "faster": "green", "same": "dim", "noise unknown": "yellow"}


def table(found: Comparison) -> Table:
    """One row per contender of ours: old and new time, their ratio, the ratio to the peers, the noise bound, the verdict."""
    result = Table(
        title="New against old", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0)
    )
    # On a narrow terminal the other columns' headings wrap, not the names.
    result.add_column("case", min_width=26)
    for name in ("old", "new", "ratio", "to peers", "beyond"):
        result.add_column(name, justify="right")
    result.add_column("verdict")
    for change in found.changes:
        result.add_row(
            f"{change.case}: {change.contender}",
            duration(change.old),
            duration(change.new),
            f"{change.ratio:.3f}",
            "-" if change.against_peers is None else f"{change.against_peers:.3f}",
            "-" if change.bound is None else f"±{change.bound - 1:.1%}",
            f"[{COLORS[change.verdict]}]{change.verdict}[/]",
        )
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "old", type=Path, metavar="OLD.json", help="a result file in benchmarks/results"
    )
    parser.add_argument("new", type=Path, metavar="NEW.json", help="a later one")
    given = parser.parse_args(arguments)
    try:
        found = compare(read_benchmarks(given.old), read_benchmarks(given.new))
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    console.print(table(found))
    for note in found.notes:
        console.print(note, soft_wrap=True, markup=False)
    count = len(found.regressions)
    console.print(f"{count or 'none'} of {len(found.changes)} slower beyond the noise")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
