"""`ptgm-fast optimize`."""

from __future__ import annotations

import torch
from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.generators import Optimized
from ptgm_fast.runs.optimize import optimize


def run(uri: str, device: str, truncation: float | None, batch: int, rounds: int) -> None:
    optimized, rates = optimize(
        uri,
        device=device,
        truncation=truncation,
        batch=batch,
        rounds=rounds,
        on_notice=console.print,
    )
    console.print(_table(optimized))
    if optimized.difference is not None:
        console.print(
            f"largest difference from the original, relative to max(1, largest value): {optimized.difference:.1e}"
        )
    if optimized.errors is not None:
        original, rewrite = optimized.errors
        console.print(f"difference from float64: original {original:.1e}, rewrite {rewrite:.1e}")
    if rates:
        console.print(
            f"batch {batch}, {torch.get_num_threads()} threads, median of {rounds} interleaved rounds: "
            f"{rates.original:,.1f} -> {rates.rewritten:,.1f} images/s ({rates.rewritten / rates.original:.2f}x)"
        )


def _table(optimized: Optimized) -> Table:
    table = Table(show_header=True, box=None, pad_edge=False)
    for name in ("pass", "matched", "multiply-adds an image", "bytes an image"):
        table.add_column(name, justify="left" if name == "pass" else "right")
    for row in optimized.passes:
        costs = (_change(*values) for values in (row.multiply_adds, row.bytes))
        table.add_row(row.name, str(row.matched), *costs)
    return table


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,}" if before != after else ""
