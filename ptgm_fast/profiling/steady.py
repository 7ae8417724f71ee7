"""Detect when step times have settled: separate the steady state from warm-up and compilation."""

from __future__ import annotations

import statistics
from array import array
from collections import deque

WINDOW = 5
TOLERANCE = 0.1
LATEST = 50
# 8 bytes per step: counts and sums cover all steps, quantiles only the first million steady ones.
MAX_KEPT = 1_000_000


class StepTimes:
    """The durations of one stage's steps.

    The steady state begins after the first step at which the median of the last 5 durations is within 10 % of the median
    of the 5 before (so after 10 steps at the earliest), or after 50 steps in any case; `settled` says which. A median
    ignores occasional slow steps (an evaluation, a checkpoint); a compilation in the first steps is followed by steps whose
    durations differ from it by far more than 10 %.
    """

    def __init__(self) -> None:
        self.count = 0
        self.settled = False
        self.first_steady: int | None = None
        self.steady_count = 0
        self.steady_ns = 0
        self.durations = array("q")
        self._recent: deque[int] = deque(maxlen=2 * WINDOW)

    @property
    def steady(self) -> bool:
        return self.first_steady is not None

    def add(self, duration_ns: int, *, measured: bool = True) -> None:
        """Add one finished step. measured=False: it ran under another instrument and does not represent the others."""
        self.count += 1
        if not measured:
            return
        if self.steady:
            self.steady_count += 1
            self.steady_ns += duration_ns
            if len(self.durations) < MAX_KEPT:
                self.durations.append(duration_ns)
            return
        self._recent.append(duration_ns)
        if len(self._recent) == 2 * WINDOW:
            steps = list(self._recent)
            before, last = statistics.median(steps[:WINDOW]), statistics.median(steps[WINDOW:])
            self.settled = abs(last - before) <= TOLERANCE * before
        if self.settled or self.count >= LATEST:
            self.first_steady = self.count + 1

    def quantile(self, fraction: float) -> float:
        """The `fraction` quantile of the steady steps' seconds; 0.0 without steady steps."""
        ordered = sorted(self.durations)
        if not ordered:
            return 0.0
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] / 1e9
