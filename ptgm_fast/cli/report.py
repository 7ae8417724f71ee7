"""`ptgm-fast report`."""

from __future__ import annotations

from pathlib import Path

from ptgm_fast.cli.ui import console
from ptgm_fast.runs.report import write_report


def run(folders: list[Path], out: Path | None) -> None:
    path = write_report(folders, out)
    console.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB, one file; open it in any browser)")
