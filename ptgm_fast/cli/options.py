"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG.toml", help="Config of the run (default: the bundled letters -> digits)."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Output folder; must be new or empty.")
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Seed for all random numbers (default: the config's)."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, e.g. p_ssl.weight=0.3; may be repeated.",
    ),
]
OriginalOption = Annotated[
    bool,
    typer.Option(
        "--no-optimize", help="Use the generator as it is (same as source.optimize=false)."
    ),
]


def with_original(settings: list[str] | None, original: bool) -> list[str]:
    """The settings of --set, plus the one of --no-optimize."""
    return [*(settings or []), *(["source.optimize=false"] if original else [])]
