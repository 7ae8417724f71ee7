"""`ptgm-fast synthesize`."""

from __future__ import annotations

from pathlib import Path

from ptgm_fast.cli.ui import StageProgress, console
from ptgm_fast.config import load_config
from ptgm_fast.runs.synthesize import synthesize


def run(
    config_path: Path | None,
    count: int,
    out: Path,
    conditioned: bool,
    seed: int | None,
    settings: list[str],
) -> None:
    config = load_config(config_path, settings, seed)
    with StageProgress(unit="image") as progress:
        summary = synthesize(
            config,
            count,
            out,
            conditioned=conditioned,
            on_images=lambda done, total: progress.update("synthesize", done, total),
        )
    console.print(
        f"{summary['count']:,} images of {len(summary['class_names'])} classes in {out}, with manifest.jsonl and summary.json"
    )
