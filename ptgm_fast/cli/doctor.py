"""`ptgm-fast doctor`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ptgm_fast.cli.ui import console
from ptgm_fast.runs.doctor import examine

COLOURS = {"ok": "green", "missing": "yellow", "broken": "red"}


def run() -> None:
    table = Table(show_header=True, box=None, pad_edge=False)
    for name in ("", "what", "found"):
        table.add_column(name)
    for finding in examine():
        table.add_row(Text(finding.state, COLOURS[finding.state]), finding.what, finding.detail)
    console.print(table)
