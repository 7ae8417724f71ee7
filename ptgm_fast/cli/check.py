"""`ptgm-fast check`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from ptgm_fast.cli.ui import StageProgress, console, percent
from ptgm_fast.config import load_config
from ptgm_fast.runs.check import CheckRecord, check
from ptgm_fast.runs.folder import free
from ptgm_fast.runs.own_classifier import train_classifier
from ptgm_fast.runs.panel import beside_the_panel
from ptgm_fast.runs.task import build_task
from ptgm_fast.training.context import Context


def run(
    config_path: Path | None, out: Path | None, samples: int, seed: int | None, settings: list[str]
) -> None:
    config = load_config(config_path, settings, seed)
    task = build_task(config, on_notice=console.print)
    with nullcontext(out) if out else free(Path("runs"), f"{config.task}-check") as folder:
        with StageProgress() as progress:
            train_classifier(task.source, config, folder, Context(on_step=progress.update))
        record = check(task, folder, samples=samples)
    _show(record)
    console.print(f"in {folder}: check.png (samples, one column per class), check.json")


def _show(record: CheckRecord) -> None:
    pair, target = record.pair, record.target
    console.print(
        f"source pair: the classifier predicts the label of {percent(pair.top1)} of {pair.samples} samples of {pair.classes} classes "
        f"(top 5: {percent(pair.top5)})"
    )
    if pair.confused:
        listed = ", ".join(f"{c.asked} as {c.given} {percent(c.share)}" for c in pair.confused)
        console.print(f"most often confused: {listed}")
    if target:
        console.print(
            f"soft labels of {target.images} target images: mean entropy {percent(target.entropy)} of the maximum"
        )
        listed = ", ".join(
            f"{u.image} ({u.class_name}) {percent(u.entropy)}" for u in target.uncertain
        )
        console.print(f"most uncertain training images: {listed}")
        listed = ", ".join(f"{' and '.join(a.classes)} {percent(a.overlap)}" for a in target.alike)
        console.print(f"target classes that ask for the same source classes: {listed}")
        if target.distance is not None:
            for line in beside_the_panel(target.distance):
                console.print(line)
    for warning in record.warnings:
        console.print(f"warning: {warning}")
    if not record.warnings:
        console.print("no warnings")
