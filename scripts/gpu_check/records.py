"""Results of checks, one line of JSON each, written immediately: a part that dies leaves the results it had."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# A check's result: a line for the page, and figures for the file.
Found = str | tuple[str, dict[str, Any]]


@dataclass
class Record:
    """A check's result. ok: None if it could not be tried; the text says why."""

    part: int
    name: str
    ok: bool | None
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def path_of(out: Path, part: int) -> Path:
    return out / f"part-{part}.jsonl"


def append(out: Path, record: Record) -> None:
    with path_of(out, record.part).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")
    print(f"{mark(record)} {record.name}: {record.text} ({record.seconds:.1f} s)", flush=True)


def mark(record: Record) -> str:
    return {True: "ok  ", False: "FAIL", None: "--  "}[record.ok]


def read(out: Path, part: int) -> list[Record]:
    path = path_of(out, part)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Record(**json.loads(line)) for line in lines]


class NotHere(Exception):
    """The machine lacks something that a check needs. This does not count as a failure."""


class Job:
    """The process of a part: its arguments, and its checks, which run one after another whether or not they fail."""

    def __init__(self, what: str, add: Callable[[argparse.ArgumentParser], None] = lambda _: None):
        parser = argparse.ArgumentParser(description=what)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--part", type=int, required=True)
        parser.add_argument("--seconds", type=float, default=540.0)
        parser.add_argument("--dry", action="store_true")
        parser.add_argument("--fail", default="")
        add(parser)
        self.options = parser.parse_args()
        self.out, self.part, self.dry = self.options.out, self.options.part, self.options.dry
        self._ends = time.monotonic() + self.options.seconds

    @property
    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    def check(
        self, name: str, call: Callable[[], Found], *, needs: float = 5.0, within: Any = None
    ) -> dict[str, Any]:
        """Record the result of `call` and return its figures, empty after a failure. needs: seconds it must have left to be tried."""
        if self.seconds_left < needs:
            self._record(name, None, "not tried: no time was left", {}, 0.0)
            return {}
        began = time.monotonic()
        context: AbstractContextManager[Any] = within or nullcontext()
        try:
            with context:
                if name == self.options.fail:
                    raise AssertionError("made to fail by --fail")
                found = call()
        except NotHere as error:
            self._record(name, None, str(error), {}, time.monotonic() - began)
        except Exception as error:
            traceback.print_exc()
            self._record(name, False, first_line(error), {}, time.monotonic() - began)
        else:
            text, facts = found if isinstance(found, tuple) else (found, {})
            self._record(name, True, text, facts, time.monotonic() - began)
            return facts
        return {}

    def _record(
        self, name: str, ok: bool | None, text: str, facts: dict[str, Any], seconds: float
    ) -> None:
        append(self.out, Record(self.part, name, ok, text, facts, round(seconds, 2)))


def first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:200]
