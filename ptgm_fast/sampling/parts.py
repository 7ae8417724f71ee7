"""A folder written in parts: by any number of processes, in any order, interruptible, with the same bytes at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import sha256, write_atomically

MANIFEST = "manifest.json"
# Exists only while the folder is being made: the law, a record of each finished part, files being written.
MAKING = ".making"
LAW = "law.json"
Record = dict[str, Any]


class Parts:
    """`count` items in parts of `size`. A part's files are determined by a law (a JSON description) and its number.

    A part is done once its record exists, which is written after its files and holds their SHA-256. So several processes
    can work without knowing of each other, and a kill costs only the part in progress. The folder is complete once it
    holds manifest.json.
    """

    def __init__(self, path: Path, law: Mapping[str, Any], *, count: int, size: int) -> None:
        self.path, self.count, self.size = path, count, size
        # As it will be read back from a file.
        self.law: dict[str, Any] = json.loads(json.dumps(law))
        self._whole: dict[str, Any] | None = None

    @property
    def number(self) -> int:
        return -(-self.count // self.size)

    def range(self, part: int) -> range:
        """The numbers of the items in a part."""
        return range(part * self.size, min((part + 1) * self.size, self.count))

    @property
    def description(self) -> dict[str, Any]:
        return {**self.law, "count": self.count, "part_size": self.size}

    @property
    def begun(self) -> bool:
        return (self.path / MAKING / LAW).is_file()

    def adopt(self, records: Mapping[int, Record]) -> None:
        """Begin in a folder that already holds these finished parts."""
        self.write_file(self.path / MAKING / LAW, _json(self.description))
        for part, record in records.items():
            self.write_file(self._record(part), _json(record))

    def begin(self) -> None:
        """Create the folder, or resume it. Raises UserError if it holds anything else or was made under another law."""
        found = read_description(self.path)
        if found is None:
            # Another process may have begun at the same moment.
            if self.path.exists() and (
                not self.path.is_dir() or any(p.name != MAKING for p in self.path.iterdir())
            ):
                raise UserError(
                    f"{str(self.path)!r} already exists and is not empty; choose another folder"
                )
            (self.path / MAKING).mkdir(parents=True, exist_ok=True)
            self.write_file(self.path / MAKING / LAW, _json(self.description))
            return
        grows = "parts" in found and found["count"] < self.count
        check_same(found, self.description, repr(str(self.path)), ("count",) if grows else ())
        if grows:
            self._grow(found)
        elif "parts" in found:
            if len(found["parts"]) != self.number:
                raise UserError(f"{str(self.path / MANIFEST)!r} does not list its parts")
            self._whole = found

    def _grow(self, smaller: Mapping[str, Any]) -> None:
        """Extend a complete folder that held fewer items of the same law: keep its full parts."""
        full = smaller["count"] // self.size
        self.adopt(dict(enumerate(smaller["parts"][:full])))
        (self.path / MANIFEST).unlink(missing_ok=True)

    def record(self, part: int) -> Record | None:
        """The record of a finished part; None if the part is not done."""
        if self._whole is not None:
            record: Record = self._whole["parts"][part]
            return record
        try:
            record = json.loads(self._record(part).read_bytes())
        except (OSError, ValueError):
            return None
        return record

    def damaged(self, part: int) -> list[str]:
        """The files in a part's record that are missing or whose bytes have changed."""
        record = self.record(part) or {"files": {}}
        return [
            name
            for name, digest in record["files"].items()
            if not (self.path / name).is_file() or sha256(self.path / name) != digest
        ]

    def write(
        self, files: Mapping[str, bytes], part: int, *, flushed: bool = True, **facts: Any
    ) -> None:
        """Write a part's files, then its record, which includes `facts`.

        flushed: False for files so small and numerous that flushing each would cost more than making them; `damaged` finds
        those lost in a power cut. Raises OSError (disk full), which leaves the part not done, and UserError if a record
        exists with other files: this machine computes differently from the one that wrote it.
        """
        made = {
            "files": {n: hashlib.sha256(data).hexdigest() for n, data in files.items()},
            **facts,
        }
        before = self.record(part)
        if before is not None and before != json.loads(json.dumps(made)):
            raise UserError(
                f"part {part} of {str(self.path)!r} has different bytes than when it was first made: this machine, or its "
                "library versions, compute differently. Make the missing files on the machine that made the others"
            )
        for name, data in files.items():
            if flushed:
                self.write_file(self.path / name, data)
            else:
                (self.path / name).parent.mkdir(exist_ok=True)
                (self.path / name).write_bytes(data)
        if before is None:
            self.write_file(self._record(part), _json(made))

    def finish(self) -> bool:
        """Write the manifest if every part is done, by whichever process. Returns whether the folder is complete."""
        manifest = self.path / MANIFEST
        # Another process may finish at the same time and remove the records.
        with suppress(FileNotFoundError):
            records = [self.record(part) for part in range(self.number)]
            if not manifest.exists() and None not in records:
                self.write_file(manifest, _json({**self.description, "parts": records}))
        if manifest.exists():
            shutil.rmtree(self.path / MAKING, ignore_errors=True)
            return True
        return False

    def missing(self) -> list[int]:
        return [part for part in range(self.number) if self.record(part) is None]

    def _record(self, part: int) -> Path:
        return self.path / MAKING / f"{part:06d}.json"

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a file of the folder atomically, even if another process writes the same one."""
        making = self.path / MAKING
        making.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, data, temporary=making / f"{os.getpid()}-{uuid.uuid4().hex}.tmp")


def read_description(path: Path) -> dict[str, Any] | None:
    """The contents of a folder's manifest (with "parts") or law; None if it has neither. Raises UserError if damaged."""
    for file in (path / MANIFEST, path / MAKING / LAW):
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{str(file)!r} is damaged ({error})") from error
        if not isinstance(found, dict) or not isinstance(found.get("count"), int):
            raise UserError(f"{str(file)!r} does not describe a folder made by ptgm-fast")
        return found
    return None


def check_same(
    found: Mapping[str, Any], asked: Mapping[str, Any], what: str, ignored: Iterable[str] = ()
) -> None:
    """Raise UserError, listing both values, if a description differs from the requested one; `ignored` keys may differ."""
    has, wants = _flat(found), _flat(asked)
    lines = [
        f"  {key}: {_shown(has.get(key))} there, {_shown(wants[key])} requested"
        for key in wants
        if has.get(key) != wants[key] and key.split(".")[0] not in ignored
    ]
    if lines:
        raise UserError(
            f"{what} was made with other settings:\n"
            + "\n".join(lines)
            + "\nUse the settings that it was made with, or make another one"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
