"""`ptgm-fast train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from ptgm_fast.cli.compare import table
from ptgm_fast.cli.profile import show_new_profile, written_at
from ptgm_fast.cli.ui import StageProgress, console, percent, served_from, stop_on_signal
from ptgm_fast.config import RunConfig, config_to_toml, load_config
from ptgm_fast.config.run import DataConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import BASELINES, Row, against_baselines
from ptgm_fast.runs.folder import RunFolder, free, newest
from ptgm_fast.runs.loggers import open_logger
from ptgm_fast.runs.task import Task, choose_device
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted
from ptgm_fast.training.distributed import joined, own_device, several_processes

RUNS = Path("runs")


def run(
    config_path: Path | None,
    out: Path | None,
    seed: int | None,
    settings: list[str],
    profile: bool,
    resume: bool,
    profile_ops: int = 0,
    logger: str | None = None,
    baselines: bool = False,
) -> None:
    with (
        stop_on_signal(alone=not several_processes()) as asked,
        joined() as group,
        ExitStack() as stack,
    ):
        if baselines and group.size > 1:
            raise UserError(
                f"--baselines runs in one process, but {group.size} were started: leave it out, or run without torchrun"
            )
        say = console.print if group.is_first else _silent
        # The folder is on the first process's machine; the other processes do not look for it.
        if resume:
            config, out, started_in = group.from_first(
                lambda: _resumed(config_path, out, seed, settings)
            )
            # The config's relative paths start there.
            os.chdir(started_in)
        else:
            config, out = group.from_first(lambda: _begin(config_path, out, seed, settings, stack))
        own_device(config.device, group)
        device = choose_device(config.device)
        # Only the first process is profiled, and only it writes the log.
        looked_at = (profile or profile_ops) and group.is_first
        log = open_logger(logger, out) if logger and group.is_first else None
        together = f", {group.size} processes" if group.size > 1 else ""
        say(
            f"{config.task}: {' -> '.join(config.stages)} on {device}{together}, seed {config.seed}; folder {out}"
        )
        with StageProgress() if group.is_first else nullcontext() as progress:
            context = Context(stop=lambda: bool(asked), on_notice=say, group=group)
            if progress:
                context.on_step, context.on_images = progress.update, progress.decoding
            if log:
                context = log.watch(context)
            before, loaded = written_at(out), list[Task]()
            try:
                summary = train(
                    config,
                    out,
                    resume=resume,
                    context=context,
                    profile=profile,
                    profile_ops=profile_ops,
                    on_task=loaded.append,
                )
            except Interrupted as stopped:
                say(f"{stopped}. Continue with: ptgm-fast train --resume --out {out}")
                sys.exit(130)
        if log:
            log.close()
        if looked_at:
            show_new_profile(out, before)
        if group.is_first:
            _report(summary, out)
        if baselines:
            _compare(config, out, lambda: bool(asked), *loaded)
        if group.is_first:
            _say_what_is_next(config, out)


def _compare(
    config: RunConfig, out: Path, stop: Callable[[], bool], task: Task | None = None
) -> None:
    """Train the baselines with the run's seed and print them next to the run."""
    console.print(f"baselines on the same data, network and seed: {', '.join(BASELINES)}")
    with StageProgress() as progress:

        def on_row(row: Row) -> None:
            progress.restart()  # the next baseline has a stage with the same name

        context = Context(stop=stop, on_step=progress.update, on_images=progress.decoding)
        try:
            report = against_baselines(config, out, task=task, context=context, on_row=on_row)
        except Interrupted:
            console.print(
                f"the run is complete, its baselines are not. Continue with: ptgm-fast train --resume --baselines --out {out}"
            )
            sys.exit(130)
    console.print(table(report))
    console.print(report["verdict"])


def _say_what_is_next(config: RunConfig, out: Path) -> None:
    written = out / "config.toml"
    if config.data == DataConfig():
        last = "init FOLDER", "writes a config for your own images"
    else:
        last = f"tune {written}", "looks for the same accuracy in less time"
    for command, does in (
        (f"report {out}", "writes one page about this run"),
        (f"compare {written} --seeds 5", "measures what the pseudo data adds, over five seeds"),
        last,
    ):
        console.print(f"next: ptgm-fast {command}  {does}", soft_wrap=True)


def _silent(*parts: object) -> None:
    """Print nothing: for all processes but the first."""


def _begin(
    config_path: Path | None,
    out: Path | None,
    seed: int | None,
    settings: list[str],
    stack: ExitStack,
) -> tuple[RunConfig, Path]:
    """A new run's config and folder."""
    config = load_config(config_path, settings, seed)
    return config, out or stack.enter_context(free(RUNS, f"{config.task}-seed{config.seed}"))


def _resumed(
    config_path: Path | None, out: Path | None, seed: int | None, settings: list[str]
) -> tuple[RunConfig, Path, Path]:
    """The config of the run to continue, its folder, and the directory it was started in.

    Settings given again must be the same.
    """
    if out is None:
        asked = load_config(config_path, settings, seed)
        out = newest(RUNS, f"{asked.task}-seed{asked.seed}")
    folder = RunFolder.reopen(out)
    config, started_in = load_config(folder.config), folder.started_in()
    if config_path or settings or seed is not None:
        asked = load_config(config_path or folder.config, settings, seed)
        if asked != config:
            before, after = config_to_toml(config).splitlines(), config_to_toml(asked).splitlines()
            changed = [line for line in after if line not in before]
            raise UserError(
                f"the run in {str(out)!r} has another config, and --resume continues it unchanged. Different: {'; '.join(changed[:6])}\n"
                "Leave out the settings, or start a new run without --resume"
            )
    return config, out if started_in == Path.cwd() else out.absolute(), started_in


def _report(summary: Mapping[str, Any], out: Path) -> None:
    target = summary["target"]
    for name, stage in summary["stages"].items():
        pool = stage["pool_bytes"], stage["reuse"], stage["seconds_saved"]
        served = f", {stage['images_served']:,} served{served_from(*pool)}" if pool[0] else ""
        console.print(
            f"{name}: {stage['steps']} steps in {stage['seconds']:.1f} s, {stage['images_per_second']:,.0f} images/s "
            f"in {stage['precision']}, "
            f"{stage['images_synthesized']:,} synthesized{served}"
        )
    console.print(
        f"test accuracy {percent(target['test_accuracy'])} on {target['test_images']:,} images "
        f"(validation {percent(target['val_accuracy'])}, expected calibration error {target['ece']:.3f}), "
        f"trained on {target['train_images']:,} labelled images"
    )
    console.print(
        f"in {out}: summary.json, model.safetensors, samples.png, curves.png, metrics.jsonl, config.toml"
    )
