"""A cache folder of decoded image sets. The name of each changes when anything it was made from changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ptgm_fast.data.images import Fit
from ptgm_fast.errors import UserError

if os.name == "posix":
    import fcntl

FORMAT, VERSION = "ptgm-fast decoded images", 1
_WRITING = ".writing-"


class Entry:
    """One image set in one form: NAME.npy, uint8 [N, C, H, W], and NAME.json, which records what it was made from.

    NAME is a hash of the location, the form, the versions of the decoding libraries, and the stamps of all files. A file
    that is changed, added, removed or renamed therefore changes the name, so an entry is never stale. Writing a new entry
    removes the earlier one of the same location and form.
    """

    def __init__(
        self,
        folder: Path,
        place: str,
        stamps: list[tuple[str | int, ...]],
        form: tuple[int | None, int | Fit | None],
        count: int,
    ) -> None:
        """count: number of images (a stamped file may hold several). Raises UserError if the folder cannot be created."""
        import PIL

        self.folder, self._count = folder, count
        self.animations = 0
        channels, image_size = form
        kind = {
            "format": FORMAT,
            "version": VERSION,
            "place": place,
            "channels": channels,
            "image_size": list(image_size) if isinstance(image_size, tuple) else image_size,
        }
        self._made_of = kind | {
            "count": count,
            "files_sha256": _digest(stamps),
            "pillow": PIL.__version__,
            "torch": torch.__version__,
        }
        self._kind = _digest(kind)[:16]
        self._name = f"{self._kind}-{_digest(self._made_of)[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache = {str(folder)!r} cannot be created ({error.strerror}); choose another folder"
            ) from None

    @contextmanager
    def alone(self, on_notice: Callable[[str], None]) -> Iterator[None]:
        """Lock the folder for this process. Others wait, then find what it decoded."""
        if os.name != "posix":
            yield
            return
        with (self.folder / ".lock").open("w") as lock:
            # On a file system without locks two processes may decode the same images; the results are identical.
            with suppress(OSError):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    on_notice(
                        f"waiting for another process that is decoding into {str(self.folder)!r}"
                    )
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def open(self) -> tuple[IO[bytes], tuple[int, ...], int] | None:
        """The open file, the shape of its images and their byte offset; None if the entry is missing or incomplete."""
        try:
            record: dict[str, Any] = json.loads(self._path(".json").read_bytes())
            file = self._path(".npy").open("rb")
        except (OSError, ValueError):
            return None
        with suppress(ValueError, TypeError, KeyError):
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
            size = os.fstat(file.fileno()).st_size
            if (
                dtype == np.uint8
                and len(shape) == 4
                and shape[0] == self._count
                and size == offset + int(np.prod(shape, dtype=np.int64))
            ):
                self.animations = int(record["animations"])
                return file, shape, offset
        file.close()
        return None

    def new_file(self) -> IO[bytes]:
        """A temporary file that `finish` renames. Removes temporary files left behind by killed processes."""
        for left in self.folder.glob(f"{_WRITING}*"):
            left.unlink(missing_ok=True)
        return (self.folder / f"{_WRITING}{os.getpid()}").open("w+b")

    def finish(self, file: IO[bytes], animations: int) -> None:
        """Rename the file from `new_file`, which now holds all images, and write its record."""
        os.fsync(file.fileno())
        record = json.dumps({**self._made_of, "animations": animations}, indent=1) + "\n"
        self._path(".json").write_text(record, encoding="utf-8")
        Path(file.name).replace(self._path(".npy"))
        for earlier in self.folder.glob(f"{self._kind}-*"):
            if earlier.stem != self._name:
                earlier.unlink(missing_ok=True)

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self._name}{suffix}"


def stamp(name: str, status: os.stat_result) -> tuple[str | int, ...]:
    """What changes when a file does: name, size, modification time and inode change time."""
    return name, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(value: Any) -> str:
    found = hashlib.sha256()
    # In chunks: a million stamps make a long text.
    for part in json.JSONEncoder(sort_keys=True).iterencode(value):
        found.update(part.encode())
    return found.hexdigest()
