"""`ptgm-fast doctor`."""

from __future__ import annotations

from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.runs.doctor import examine

MARKS = {
    "ok": "[green]ok[/green]",
    "missing": "[yellow]missing[/yellow]",
    "broken": "[red]broken[/red]",
}


def run() -> None:
    table = Table(show_header=True, box=None, pad_edge=False)
    for name in ("", "what", "found"):
        table.add_column(name)
    for finding in examine():
        table.add_row(MARKS[finding.state], finding.what, finding.detail)
    console.print(table)
