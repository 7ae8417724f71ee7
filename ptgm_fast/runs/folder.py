"""The run folder: created once, written atomically file by file, and reopened for a resume."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if os.name == "posix":
    import fcntl

from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically

ASKED = "asked.json"
_STARTED_IN = "# Relative paths start in "
# Files that a kill may leave before config.toml exists: such a folder does not count as a run.
_BEFORE_CONFIG = frozenset({".config.toml.tmp", f".{ASKED}.tmp", ASKED})


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
    @contextmanager
    def writing(cls, path: Path, *, resume: bool = False) -> Iterator[RunFolder]:
        """Open a new folder, or with resume that of an earlier run, for exclusive writing.

        The lock belongs to the process and ends with it, however it ends. Raises UserError if the folder cannot be created,
        if it is not empty (an earlier run is never overwritten), if there is nothing to resume, or while another process
        is writing to it.
        """
        folder = cls.reopen(path) if resume else cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the folder {str(path)!r} cannot be created ({error.strerror}); choose another --out"
            ) from None
        with _lock(path):
            if not resume and any(p.name not in _BEFORE_CONFIG for p in path.iterdir()):
                raise UserError(
                    f"{str(path)!r} already exists and is not empty. Choose another --out, or continue the run in it with --resume"
                )
            yield folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open an existing run's folder. Raises UserError if there is none."""
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(
                f"{str(path)!r} holds no run to resume (no config.toml); start one without --resume"
            )
        return folder

    def write_config(self, text: str) -> None:
        """Write config.toml, with the directory that its relative paths start from."""
        self.write_text(self.config, f"{_STARTED_IN}{json.dumps(str(Path.cwd()))}\n{text}")

    def started_in(self) -> Path:
        """The directory that relative paths in config.toml start from; the current one if it no longer exists."""
        first = self.config.read_text(encoding="utf-8-sig").partition("\n")[0]
        if first.startswith(_STARTED_IN):
            with suppress(ValueError):
                path = Path(json.loads(first.removeprefix(_STARTED_IN)))
                if path.is_dir():
                    return path
        return Path.cwd()

    def write_text(self, path: Path, text: str) -> None:
        write_atomically(path, text.encode())

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        self.write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def write_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace all lines by these."""
        self.write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in records))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines; a last line cut off by a kill is dropped."""
        records = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return records

    def rewind_metrics(self, stages: tuple[str, ...], stage: str, step: int) -> None:
        """Drop the lines after a checkpoint: a resumed run writes them again."""
        kept = [
            record
            for record in self.read_metrics()
            if (stages.index(record["stage"]), record["step"]) <= (stages.index(stage), step)
        ]
        self.write_metrics(kept)


@contextmanager
def free(root: Path, name: str) -> Iterator[Path]:
    """`root/name`, or the first of `root/name-2`, `-3`, ... that does not exist.

    The folder is created at once, so that no other process takes the name; if left empty, it is removed at the end.
    """
    path = claim(root, name)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.rmdir()


def claim(root: Path, name: str) -> Path:
    """Create the empty folder of `free`, without removing it later."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = root / (name if number == 1 else f"{name}-{number}")
            # A dangling link also occupies the name.
            with suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise UserError(
            f"no folder for {name!r} can be created in {str(root)!r} ({error.strerror}); use --out"
        ) from None
    raise AssertionError("unreachable")


def newest(root: Path, name: str) -> Path:
    """The newest run folder among `root/name`, `root/name-2`, ...; raises UserError if there is none."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        number = path.name.removeprefix(name)
        of_this_name = path.name.startswith(name) and re.fullmatch(r"(-[0-9]+)?", number)
        if of_this_name and (path / "config.toml").is_file():
            found.append(path)
    if not found:
        raise UserError(f"there is no run to resume in {str(root)!r}; start one without --resume")
    return max(found, key=lambda p: p.stat().st_mtime)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the kernel releases the lock of a killed process."""
    if os.name != "posix":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is writing to {str(folder)!r}. Choose another --out, or wait for it to finish"
            ) from None
        except OSError:
            pass  # A file system without locks.
        yield
    finally:
        os.close(descriptor)
