"""`ptgm-fast synthesize`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.table import Table

from ptgm_fast.cli.ui import StageProgress, console, size
from ptgm_fast.config import load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs.estimate import Estimate, estimate
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.training.distributed import joined


def run(
    config_path: Path | None,
    count: int,
    out: Path | None,
    conditioned: bool,
    seed: int | None,
    settings: list[str],
    format: str = "folder",
    shard: str = "1/1",
    only_estimate: bool = False,
) -> None:
    if only_estimate:
        config = load_config(config_path, settings, seed)
        _show(estimate(config, count, conditioned=conditioned, format=format), count, format)
        return
    if out is None:
        raise UserError("--out DIR is required: the folder to write to")
    with joined() as group:
        config = group.from_first(lambda: load_config(config_path, settings, seed))
        with StageProgress(unit="image") if group.is_first else nullcontext() as progress:

            def on_images(done: int, total: int) -> None:
                if progress:
                    progress.update("synthesize", done, total)

            summary = synthesize(
                config,
                count,
                out,
                conditioned=conditioned,
                format=format,
                shard=_shard(shard),
                on_images=on_images,
                on_notice=console.print,
                group=group,
            )
        if group.is_first:
            _report(summary, out, format)


def _shard(text: str) -> tuple[int, int]:
    part, slash, whole = text.partition("/")
    if not (slash and part.strip().isdecimal() and whole.strip().isdecimal()):
        raise UserError(f"--shard takes I/N, for example 3/8, got {text!r}")
    return int(part), int(whole)


def _report(summary: Mapping[str, Any], out: Path, format: str) -> None:
    if missing := summary.get("missing_parts"):
        console.print(
            f"this share is done; {len(missing)} of {summary['parts']} parts are still missing in {out}; they belong to other shares"
        )
        return
    beside = "manifest.jsonl and summary.json" if format == "folder" else "manifest.json"
    console.print(
        f"{summary['count']:,} images of {len(summary['class_names'])} classes in {out}, with {beside}"
    )


def _show(found: Estimate, count: int, format: str) -> None:
    console.print(
        f"{count:,} images of {found.image_size}x{found.image_size} as {format}: {found.images_per_second:,.1f} images/s on "
        f"{found.device}, {size(found.disk_bytes)} on disk, {size(found.memory_bytes)} of memory (measured over {found.measured} images)"
    )
    result = Table(
        title="by number of processes, each on a device like this one", title_justify="left"
    )
    for name in ("processes", "images/s", "time", "memory of all"):
        result.add_column(name, justify="right")
    for number in (1, 2, 4, 8):
        rate = number * found.images_per_second
        result.add_row(
            str(number), f"{rate:,.1f}", duration(count / rate), size(number * found.memory_bytes)
        )
    console.print(result)


def duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{hours:,.1f} h"
