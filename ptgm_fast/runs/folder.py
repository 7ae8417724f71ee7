"""The run folder: created once, written whole file by whole file, found again for a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically


class RunFolder:
    """Paths and writers of one run: config.toml, metrics.jsonl, summary.json, model.safetensors, pictures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.model = path / "model.safetensors"
        self.checkpoint = path / "checkpoint.pt"

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new folder. Raises UserError if something is already there: nothing of an earlier run is overwritten.

        What a kill leaves of a config.toml that was being written is nothing of a run.
        """
        if path.exists() and (
            not path.is_dir() or any(p.name != ".config.toml.tmp" for p in path.iterdir())
        ):
            raise UserError(
                f"{str(path)!r} already exists and is not empty. Choose another --out, or continue the run in it with --resume"
            )
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """An existing run's folder. Raises UserError if there is none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(
                f"{str(path)!r} holds no run to resume (no config.toml); start one without --resume"
            )
        return folder

    def write_text(self, path: Path, text: str) -> None:
        write_atomically(path, text.encode())

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        self.write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines; a last line cut off by a kill is left out."""
        records = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return records

    def rewind_metrics(self, stages: tuple[str, ...], stage: str, step: int) -> None:
        """Drop the lines past a checkpoint: a resumed run writes them again."""
        kept = [
            record
            for record in self.read_metrics()
            if (stages.index(record["stage"]), record["step"]) <= (stages.index(stage), step)
        ]
        self.write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))


def next_free(root: Path, name: str) -> Path:
    """`root/name`, or the first of `root/name-2`, `-3`, ... that does not exist."""
    candidate, number = root / name, 1
    while candidate.exists():
        number += 1
        candidate = root / f"{name}-{number}"
    return candidate


def newest(root: Path, name: str) -> Path:
    """The newest of `root/name`, `root/name-2`, ...; raises UserError if there is none."""
    found = [p for p in root.glob(f"{name}*") if (p / "config.toml").is_file()]
    if not found:
        raise UserError(f"there is no run to resume in {str(root)!r}; start one without --resume")
    return max(found, key=lambda p: p.stat().st_mtime)
