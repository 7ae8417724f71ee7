"""What `ptgm-fast compare --panel` prints at the end."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from ptgm_fast.cli.ui import console
from ptgm_fast.runs.panel import PANEL_METHODS, PICTURE, RECORD, PanelRecord


def show(record: PanelRecord, out: Path) -> None:
    for table in (accuracies(record), gains(record)):
        console.print(table)
    for target in record.targets.values():
        console.print(target.verdict)
    console.print(f"in {out}: {RECORD}, {PICTURE}, config.toml, and a comparison for each target")


def accuracies(record: PanelRecord) -> Table:
    """One column per target, nearest first. Fits the 80 columns of a log."""
    targets = record.targets.values()
    result = _table(record, "test accuracy, % ± standard deviation over seeds")
    result.add_column("", no_wrap=True)
    for target in targets:
        result.add_column(target.title, justify="right")
    result.add_row("distance", *(f"{target.distance:.3f}" for target in targets))
    for method in PANEL_METHODS:
        rows = [target.methods[method] for target in targets]
        result.add_row(
            method,
            *(
                f"{100 * row.mean:.1f}" + f"±{100 * row.std:.1f}" * (len(record.seeds) > 1)
                for row in rows
            ),
        )
    return result


def gains(record: PanelRecord) -> Table:
    """One row per target, nearest first."""
    several = " ± standard error, paired by seed" if len(record.seeds) > 1 else ""
    result = _table(record, f"what each adds, points of test accuracy{several}")
    result.add_column("target")
    targets = list(record.targets.values())
    for name in targets[0].gains:
        result.add_column(name, justify="right")
    for target in targets:
        result.add_row(target.title, *(str(found) for found in target.gains.values()))
    return result


def _table(record: PanelRecord, what: str) -> Table:
    seeds, labels = len(record.seeds), record.labels_per_class
    title = f"{what}; {labels} labels a class, {seeds} seed{'s' * (seeds > 1)}"
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0, 0, 1),
    )
