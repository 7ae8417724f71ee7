"""`ptgm-fast init`."""

from __future__ import annotations

from pathlib import Path

from ptgm_fast.cli.ui import StageProgress, console
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically
from ptgm_fast.runs.init import describe, first_config, look


def run(
    folder: Path,
    out: Path | None,
    generator: str,
    classifier: tuple[str, str] | None,
    force: bool,
) -> None:
    _refuse_to_overwrite(out, force)
    with StageProgress() as progress:
        seen = look(folder, progress.decoding)
    for line in describe(seen):
        console.print(line, soft_wrap=True)
    text = first_config(seen, generator, classifier)
    path = out or Path(f"{seen.name}.toml")
    _refuse_to_overwrite(path, force)
    write_atomically(path, text.encode())
    console.print(f"wrote {path}. Read it, then run")
    console.print(f"  ptgm-fast check {path}")
    console.print(f"  ptgm-fast train {path} --baselines")


def _refuse_to_overwrite(path: Path | None, force: bool) -> None:
    if path is not None and path.exists() and not force:
        raise UserError(
            f"{str(path)!r} already exists; choose another --out, or overwrite it with --force"
        )
