"""The root of the command line: its own output and its commands."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from ptgm_fast.cli import of_runs, of_sources
from ptgm_fast.errors import UserError

app = typer.Typer(
    name="ptgm-fast",
    help="Train a target classifier from a frozen conditional generator and a frozen source classifier.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: importing rich would take longer than everything else in --help.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from ptgm_fast import __version__

        typer.echo(f"ptgm-fast {__version__}")
        raise typer.Exit


# The commands that torchrun may start in several processes; any other would repeat the same work in each.
SHARED_COMMANDS = ("train", "synthesize")
FIRST_SPEAKS_SECONDS = 10.0
BARE = """\
ptgm-fast train          a first run, letters -> digits; then `report` shows it and `compare` measures what pseudo data adds
ptgm-fast init FOLDER    your own images: writes a config for `check` and `train` from a folder with one subfolder per class
ptgm-fast --help         all commands"""


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train a target classifier from a frozen conditional generator and a frozen source classifier."""
    if context.invoked_subcommand is None:
        typer.echo(BARE)
        return
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    if several and context.invoked_subcommand not in SHARED_COMMANDS:
        if os.environ.get("RANK", "0") != "0":
            # torchrun kills all processes as soon as one exits: give the first one time to print the error.
            time.sleep(FIRST_SPEAKS_SECONDS)
            raise typer.Exit(2)
        raise UserError(
            f"{context.invoked_subcommand} runs in one process, but {os.environ['WORLD_SIZE']} were started: run it without "
            f"torchrun (only {' and '.join(SHARED_COMMANDS)} support it)"
        )


for command in (
    of_runs.init,
    of_runs.train,
    of_runs.compare,
    of_runs.tune,
    of_runs.profile,
    of_runs.report,
    of_sources.synthesize,
    of_sources.source,
    of_runs.check,
    of_sources.doctor,
    of_sources.optimize,
    of_sources.convert,
):
    app.command()(command)
