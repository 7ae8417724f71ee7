"""Shared output of the commands: progress (bars on a terminal, plain lines elsewhere), number formats, a clean stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from ptgm_fast.config import RunConfig

# No markup and no emoji, so that names and paths are printed literally.
console = Console(highlight=False, markup=False, emoji=False)


class StageProgress:
    """Progress of named stages with their rate and remaining time.

    One bar per stage on a terminal; elsewhere (a log file, CI) a plain line at most every `interval` seconds.
    """

    def __init__(self, unit: str = "step", interval: float = 10.0) -> None:
        self.unit = unit
        self.interval = interval
        self._bars = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.0f} {task.fields[unit]}s/s", markup=False),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=False,
            )
            if console.is_terminal
            else None
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._printed = 0.0

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def decoding(self, done: int, total: int) -> None:
        """Report that `done` of `total` image files are decoded."""
        self.update("decoding", done, total, "image")
        if done == total:
            # Another image set may follow.
            self._forget("decoding")

    def update(self, stage: str, done: int, total: int, unit: str = "") -> None:
        """Report that `done` of `total` units of a stage are finished."""
        unit = unit or self.unit
        now = time.monotonic()
        began, first = self._started.setdefault(stage, (now, done - 1))
        rate = (done - first) / max(now - began, 1e-3) if now > began else 0.0
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, rate=0.0, unit=unit)
            self._bars.update(self._tasks[stage], completed=done, total=total, rate=rate)
        elif done == total or now - self._printed >= self.interval:
            self._printed = now
            left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
            console.print(f"{stage}: {done}/{total} {unit}s, {rate:.1f} {unit}s/s{left}")

    def _forget(self, stage: str) -> None:
        """Treat the next `update` with this name as a new stage; the finished bar stays visible."""
        self._tasks.pop(stage, None)
        self._started.pop(stage, None)

    def restart(self) -> None:
        """Forget all stages: another run with the same stage names follows."""
        if self._bars:
            for task in self._tasks.values():
                self._bars.remove_task(task)
        self._tasks.clear()
        self._started.clear()


@contextmanager
def stop_on_signal(*, alone: bool = True) -> Iterator[list[bool]]:
    """Yield a list that becomes non-empty after Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once.

    alone: False in one of several processes. There, torchrun forwards a signal that the terminal may already have sent,
    so a second signal does not mean a second Ctrl-C, and only one process should print.
    """
    asked: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked and alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(True)
        if not alone:
            return
        console.print("finishing this step and saving ... (Ctrl-C again stops at once)")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        # One of several processes ignores signals while it exits: torchrun signals all once the first has exited, and
        # the exit code must keep saying why.
        for number, handler in previous.items():
            signal.signal(number, handler if alone else signal.SIG_IGN)


def reentered(out: Path) -> tuple[RunConfig, Path]:
    """The config of a folder to continue, and the folder's absolute path.

    Changes to the directory that the config's relative paths start from. Raises UserError if there is nothing to continue.
    """
    from ptgm_fast.config import load_config
    from ptgm_fast.runs.folder import RunFolder

    folder = RunFolder.reopen(out)
    config, absolute = load_config(folder.config), out.absolute()
    os.chdir(folder.started_in())
    return config, absolute


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if num_bytes < 100 else f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"


def served_from(
    pool_bytes: int, reuse: float, seconds_saved: float | None, joules_saved: float | None = None
) -> str:
    """What a pool did for a stage, as text to append to the number of images served; empty if every image was fresh."""
    if not pool_bytes:
        return ""
    saved = [] if seconds_saved is None else [f"{seconds_saved:.0f} s"]
    saved += [] if joules_saved is None else [f"{joules_saved / 1000:.1f} kJ"]
    about = f", about {' and '.join(saved)} of synthesis saved" if saved else ""
    return f" from a pool of {size(pool_bytes)} ({reuse:.1f} times each){about}"
