"""The clock of the GPU suites: device time, measured by CUDA events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ptgm_fast.profiling.device import CudaTimer


@dataclass(frozen=True)
class Mark:
    """A point on the device's stream. `later - earlier`: seconds between them, once the device has passed both."""

    timer: CudaTimer
    point: Any

    def __sub__(self, earlier: Mark) -> float:
        self.timer.synchronize()
        seconds = self.timer.seconds(earlier.point, self.point)
        for mark in (self, earlier):
            self.timer.recycle(mark.point)
        return seconds


class DeviceClock:
    """A timer for pytest-benchmark, which calls it before and after the work and takes the difference.

    The first call of a pair waits for all earlier work, so that only the timed work is between the events. A pair
    measures the stream's time: the kernels, and the gaps between them where the host launches too slowly. A pair therefore
    holds several calls (`CALLS`), so that the second is launched while the first runs.
    """

    CALLS = 10

    def __init__(self, timer: CudaTimer) -> None:
        self._timer = timer

    def __call__(self) -> Mark:
        self._timer.synchronize()
        return Mark(self._timer, self._timer.mark())
