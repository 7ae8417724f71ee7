"""`ptgm-fast source`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from ptgm_fast.cli.ui import StageProgress, console
from ptgm_fast.config import load_source_config
from ptgm_fast.runs.folder import free
from ptgm_fast.runs.task import choose_device
from ptgm_fast.training.source import train_source


def run(config_path: Path, out: Path | None, seed: int | None, settings: list[str]) -> None:
    options = load_source_config(config_path, settings, seed)
    chosen = nullcontext(out) if out else free(Path("runs"), f"{options.name}-source")
    with chosen as out, StageProgress() as progress:

        def report(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
            progress.update(stage, step, steps)

        card = train_source(options, out, report=report, device=choose_device("auto"))
    console.print_json(data=dict(card.figures))
    console.print(
        f"in {out}: generator.safetensors, classifier.safetensors, card.json, samples.png. Use it with:\n"
        f'  [source]\n  generator = "{out}"',
        markup=False,
    )
