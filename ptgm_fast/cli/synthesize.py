"""`ptgm-fast synthesize`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ptgm_fast.cli.ui import StageProgress, console
from ptgm_fast.config import load_config
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.training.distributed import joined


def run(
    config_path: Path | None,
    count: int,
    out: Path,
    conditioned: bool,
    seed: int | None,
    settings: list[str],
) -> None:
    with joined() as group:
        config = group.from_first(lambda: load_config(config_path, settings, seed))
        with StageProgress(unit="image") if group.is_first else nullcontext() as progress:

            def on_images(done: int, total: int) -> None:
                if progress:
                    progress.update("synthesize", done, total)

            summary = synthesize(
                config, count, out, conditioned=conditioned, on_images=on_images, group=group
            )
        if group.is_first:
            _report(summary, out)


def _report(summary: Mapping[str, Any], out: Path) -> None:
    console.print(
        f"{summary['count']:,} images of {len(summary['class_names'])} classes in {out}, with manifest.jsonl and summary.json"
    )
