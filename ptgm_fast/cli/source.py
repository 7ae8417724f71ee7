"""`ptgm-fast source`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from ptgm_fast.cli.ui import StageProgress, console, stop_on_signal
from ptgm_fast.config import load_config, load_source_config
from ptgm_fast.runs.folder import free
from ptgm_fast.runs.own_classifier import FIGURES, WEIGHTS, train_classifier
from ptgm_fast.runs.task import build_source, choose_device
from ptgm_fast.training.context import Context, Interrupted
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


def run_classifier(
    config_path: Path, out: Path | None, seed: int | None, settings: list[str]
) -> None:
    own = [] if seed is None else [f"source.training.seed={seed}"]
    config = load_config(config_path, [*settings, "source.classifier=none", *own])
    source = build_source(config, console.print)
    chosen = nullcontext(out) if out else free(Path("runs"), f"{config.task}-classifier")
    with stop_on_signal() as asked, chosen as out, StageProgress() as progress:
        context = Context(
            on_step=progress.update, stop=lambda: bool(asked), on_notice=console.print
        )
        try:
            figures = train_classifier(source, config, out, context)
        except Interrupted as stopped:
            console.print(f"{stopped}. Continue with the same command and --out {out}")
            sys.exit(130)
    console.print_json(data=figures)
    console.print(
        f"in {out}: {WEIGHTS}, {FIGURES}. Use it with:\n  [source.classifier]\n"
        f'  network = "{config.source.training.network}"\n  weights = "{out / WEIGHTS}"'
    )
