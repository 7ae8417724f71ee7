"""Named, nested spans on a monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SpanRecorder:
    """Adds up the seconds of named spans, by their path (`("pp", "generator")`).

    On a GPU the device is synchronised at both ends of a span, so that a span holds the work it started; that
    takes away overlap while profiling. Not thread-safe: one recorder a thread.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds: dict[tuple[str, ...], float] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self._path: list[str] = []
        self._synchronise = torch.device(device).type == "cuda"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._path.append(name)
        path = tuple(self._path)
        started = self._now()
        try:
            yield
        finally:
            self._path.pop()
            self.seconds[path] = self.seconds.get(path, 0.0) + self._now() - started
            self.counts[path] = self.counts.get(path, 0) + 1

    def _now(self) -> float:
        if self._synchronise:
            torch.cuda.synchronize()
        return time.perf_counter()

    def phases(self, stage: str) -> dict[str, float]:
        """Seconds of each direct child of a top-level span, in order of first use; ``other`` is what none covers."""
        phases = {
            path[1]: seconds
            for path, seconds in self.seconds.items()
            if len(path) == 2 and path[0] == stage
        }
        total = self.seconds.get((stage,), 0.0)
        phases["other"] = max(0.0, total - sum(phases.values()))
        return phases
