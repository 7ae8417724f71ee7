"""Publish a measured panel: its record for `ptgm-fast check`, its picture and table for docs/panel.md.

    ptgm-fast compare --panel --seeds 5 --out runs/panel
    python scripts/write_panel.py runs/panel

`ptgm-fast compare --resume --out runs/panel` continues a stopped run. A test checks that the page matches the record.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from ptgm_fast.runs.panel import MEASURED, PANEL_METHODS, PICTURE, RECORD, PanelRecord, read_panel

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- panel: begin -->\n", "<!-- panel: end -->\n"


def block(record: PanelRecord) -> str:
    """The page's block for a record: the picture, the accuracies, the gains, a verdict per target."""
    targets = list(record.targets.values())
    accuracies = [
        [f"{100 * row.mean:.1f} ± {100 * row.std:.1f}" for row in target.methods.values()]
        for target in targets
    ]
    gains = [[str(found) for found in target.gains.values()] for target in targets]
    head = [[target.title, f"{target.distance:.3f}"] for target in targets]
    seeds, labels = len(record.seeds), record.labels_per_class
    return "\n".join(
        [
            f"![what each stage adds against the distance]({PICTURE})",
            "",
            f"Test accuracy, %, mean ± standard deviation over {seeds} seeds, {labels} labelled images a class:",
            "",
            *_table(
                ["target", "distance", *(f"`{method}`" for method in PANEL_METHODS)],
                head,
                accuracies,
            ),
            "",
            "What each adds, in points, mean ± standard error, paired by seed:",
            "",
            *_table(["target", "distance", *targets[0].gains], head, gains),
            "",
            *(f"- {target.verdict}" for target in targets),
            "",
            f"`{record.command}` on {record.device}, torch {record.versions.get('torch', '?')} "
            "([the record](../ptgm_fast/assets/panel/results.json)).",
            "",
        ]
    )


def _table(names: list[str], head: Iterable[list[str]], rows: Iterable[list[str]]) -> Iterable[str]:
    yield f"| {' | '.join(names)} |"
    yield "|---" + "|---:" * (len(names) - 1) + "|"
    for left, right in zip(head, rows, strict=True):
        yield f"| {' | '.join([*left, *right])} |"


def page(text: str, record: PanelRecord) -> str:
    """The page's text with the block replaced by the record's."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + block(record) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of `ptgm-fast compare --panel`")
    run = parser.parse_args().run
    record, path = read_panel(run / RECORD), DOCS / "panel.md"
    shutil.copyfile(run / RECORD, MEASURED)
    shutil.copyfile(run / PICTURE, DOCS / PICTURE)
    path.write_text(page(path.read_text(encoding="utf-8"), record), encoding="utf-8")
    print(f"written: {MEASURED}, {DOCS / PICTURE}, {path}")


if __name__ == "__main__":
    main()
