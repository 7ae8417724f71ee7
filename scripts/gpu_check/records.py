"""What a check found, a line of JSON each, written as soon as it is known: a part that dies leaves what it had."""

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

# What a check gives: a line for the page, and figures for whoever reads the file.
Found = str | tuple[str, dict[str, Any]]


@dataclass
class Record:
    """ok: None where nothing could be tried, which the text explains."""

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
    """What a check needs is not on this machine; no failure."""


class Job:
    """A process of a part: its arguments, and the checks that it makes one after another, whatever they find."""

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
        """Record what `call` finds; its figures, empty after a failure. needs: seconds, without which it is not tried."""
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
