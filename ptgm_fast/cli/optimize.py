"""`ptgm-fast optimize`."""

from __future__ import annotations

from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.generators import load, optimize


def run(uri: str) -> None:
    optimized = optimize(load(uri))
    if optimized.left is not None:
        console.print(f"left as it is: {optimized.left}")
        return
    table = Table(show_header=True, box=None, pad_edge=False)
    for name in ("pass", "matched", "multiply-adds an image", "bytes an image"):
        table.add_column(name, justify="left" if name == "pass" else "right")
    for row in optimized.passes:
        costs = (f"{before:,} -> {after:,}" for before, after in (row.multiply_adds, row.bytes))
        table.add_row(row.name, str(row.matched), *costs)
    console.print(table)
    console.print(f"largest difference from the original, relative: {optimized.difference:.1e}")
