"""Printing that never ends a run: not on a broken pipe, a full disk, a closed stream, or a character that cannot be encoded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class LenientStream:
    """A text stream whose `write` and `flush` never raise. Characters that cannot be encoded are written as escapes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):
            self._leave()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._leave()

    def _leave(self) -> None:
        """Discard all further output, and what is buffered: otherwise Python would fail to flush it at exit."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass
        # Others may hold `self` as sys.stdout: only the stream behind it changes.
        self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Make standard output and error lenient within the block."""
    # The next file opened would get a closed descriptor's number, and printed text would end up in it.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        LenientStream(s or open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        for s in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
