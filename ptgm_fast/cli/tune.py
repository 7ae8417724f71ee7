"""`ptgm-fast tune`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from rich.table import Table

from ptgm_fast.cli.ui import StageProgress, console, percent, reentered, stop_on_signal
from ptgm_fast.config import load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs.folder import free
from ptgm_fast.runs.tune import Trial, describe, tune
from ptgm_fast.training.context import Context, Interrupted


def run(
    config_path: Path | None,
    out: Path | None,
    minutes: float,
    settings: list[str],
    resume: bool,
) -> None:
    if resume:
        if config_path or settings or out is None:
            raise UserError(
                "tune --resume takes only --out DIR and --minutes: the config is stored in that folder"
            )
        config, out = reentered(out)
    else:
        config = load_config(config_path, settings)
    chosen = nullcontext(out) if out else free(Path("runs"), f"{config.task}-tune")
    with stop_on_signal() as stopping, chosen as out, StageProgress(interval=60.0) as progress:
        console.print(
            f"{config.task}: searching budgets for about {minutes:g} minutes; folder {out}"
        )

        def on_trial(trial: Trial) -> None:
            progress.restart()
            console.print(
                f"{trial.number:>3} seed {trial.seed}  validation {percent(trial.validation_accuracy)}  "
                f"{trial.seconds:.1f} s  {describe(trial.settings)}"
            )

        context = Context(
            stop=lambda: bool(stopping),
            on_step=progress.update,
            on_images=progress.decoding,
        )
        try:
            report = tune(
                config, out, minutes=minutes, resume=resume, context=context, on_trial=on_trial
            )
        except Interrupted:
            console.print(
                f"the trials above are saved. Continue with: ptgm-fast tune --resume --out {out} --minutes {minutes:g}"
            )
            sys.exit(130)
    table = Table(title=f"{report['task']}: {len(report['seeds'])} seeds, validation images")
    for name in ("budget", "accuracy, %", "against the config", "seconds"):
        table.add_column(name, justify="left" if name == "budget" else "right")
    for row in report["budgets"]:
        mark = " (chosen)" if row["number"] == report["chosen"]["number"] else ""
        table.add_row(
            describe(row["settings"]) + mark,
            f"{100 * row['accuracy']:.2f}",
            f"{100 * row['gain']:+.2f} ± {100 * row['error']:.2f}",
            f"{row['seconds']:.1f}",
        )
    console.print(table)
    own = next(row for row in report["budgets"] if row["number"] == 0)
    faster = own["seconds"] / report["chosen"]["seconds"]
    console.print(
        f"chosen: {faster:.1f} times as fast as the config itself. Train with it: ptgm-fast train {out / 'chosen.toml'}"
    )
    console.print(
        f"in {out}: chosen.toml, frontier.png, tune.json, metrics.jsonl (one line per training)"
    )
