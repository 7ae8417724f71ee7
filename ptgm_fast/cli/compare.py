"""`ptgm-fast compare`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.table import Table

from ptgm_fast.cli.panel import show
from ptgm_fast.cli.ui import StageProgress, console, percent, reentered, stop_on_signal
from ptgm_fast.config import load_config
from ptgm_fast.config.run import accepted_methods
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import DEFAULT_METHODS, Asked, Row, asked_of, compare
from ptgm_fast.runs.folder import free
from ptgm_fast.runs.panel import PANEL_METHODS, compare_panel
from ptgm_fast.training.context import Context, Interrupted


def run(
    config_path: Path | None,
    out: Path | None,
    seeds: str | None,
    methods: str | None,
    settings: list[str],
    networks: str | None = None,
    share_pool: bool = False,
    resume: bool = False,
    panel: bool = False,
) -> None:
    if resume:
        if config_path or seeds or methods or settings or networks or share_pool or out is None:
            raise UserError(
                "compare --resume takes only --out DIR: everything else is stored in that folder"
            )
        asked = asked_of(out)
        if panel and not asked.panel:
            raise UserError(
                f"the comparison in {str(out)!r} has a single target: leave out --panel"
            )
        config, out = reentered(out)
    else:
        config = load_config(config_path, settings)
        asked = Asked(
            tuple(_methods(methods)) if methods else PANEL_METHODS if panel else DEFAULT_METHODS,
            tuple(_seeds(seeds or "3")),
            tuple(_names(networks, "--networks")) if networks else (),
            share_pool,
            panel,
        )
        if panel and (methods or networks):
            given = "--methods" if methods else "--networks"
            raise UserError(
                f"compare --panel has fixed methods and uses the config's target network: leave out {given}"
            )
    if share_pool and config.synthesis.images == "fresh":
        raise UserError(
            "--share-pool has no effect while PP uses fresh images: set a pool size, for example --set synthesis.images=9600"
        )
    name = "panel" if asked.panel else config.task
    chosen = nullcontext(out) if out else free(Path("runs"), f"{name}-compare")
    with stop_on_signal() as stopping, chosen as out, StageProgress(interval=30.0) as progress:
        several = f" x {len(asked.networks)} networks" if len(asked.networks) > 1 else ""
        console.print(
            f"{name}: {len(asked.methods)} methods x {len(asked.seeds)} seeds{several}; folder {out}"
        )

        def on_row(row: Row) -> None:
            progress.restart()
            console.print(
                f"seed {row.seed}  {row.method:<16} test {percent(row.test_accuracy)}  "
                f"validation {percent(row.val_accuracy)}  {row.seconds:.0f} s"
            )

        how: dict[str, Any] = {
            "resume": resume,
            "context": Context(
                stop=lambda: bool(stopping),
                on_step=progress.update,
                on_images=progress.decoding,
            ),
            "on_row": on_row,
        }
        try:
            if asked.panel:
                show(compare_panel(config, asked, out, on_target=console.print, **how), out)
                return
            report = compare(config, asked, out, **how)
        except Interrupted:
            console.print(
                f"the rows above are saved. Continue with: ptgm-fast compare --resume --out {out}"
            )
            sys.exit(130)
    console.print(table(report))
    console.print(report["verdict"])
    console.print(f"in {out}: compare.json, compare.png, config.toml")


def table(report: Mapping[str, Any]) -> Table:
    """One row per method: accuracy over seeds, calibration error, seconds, images synthesized."""
    several = len(report["seeds"]) > 1
    result = Table(
        title=f"{report['task']}, seed{'s' * several} {', '.join(map(str, report['seeds']))}",
        title_justify="left",
    )
    result.add_column("method")
    for name in ("test accuracy, %", "ECE", "seconds", "images synthesized"):
        result.add_column(name, justify="right")
    for name, row in report["methods"].items():
        result.add_row(
            name,
            f"{100 * row['mean']:.2f}" + (f" ± {100 * row['std']:.2f}" if several else ""),
            f"{row['ece']:.3f}",
            f"{row['seconds']:.1f}",
            f"{row['images_synthesized']:,}",
        )
    return result


def _seeds(text: str) -> list[int]:
    """ "3" means seeds 0, 1, 2; "4,5,6" means these three; "7," means seed 7 alone."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise UserError(
            f"--seeds takes a number of seeds (3) or a list of seeds (4,5,6), got {text!r}"
        )
    numbers = [int(part) for part in parts]
    if "," not in text:
        if numbers[0] < 1:
            raise UserError("--seeds must be at least 1")
        return list(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds {text!r} lists a seed twice")
    return numbers


def _methods(text: str) -> list[str]:
    from ptgm_fast.models.build import nearest

    names = _names(text, "--methods")
    for name in names:
        if name not in accepted_methods():
            hint = nearest(name, accepted_methods())
            raise UserError(
                f"unknown method {name!r}{hint}; accepted: {', '.join(accepted_methods())}"
            )
    return names


def _names(text: str, option: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{option} {text!r} is empty or lists a name twice")
    return names
