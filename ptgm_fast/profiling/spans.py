"""Named, nested spans of every thread, on the host's monotonic clock and, on a GPU, on the device's clock."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ptgm_fast.profiling.device import CudaTimer, device_timer
from ptgm_fast.profiling.schema import MAIN
from ptgm_fast.profiling.steady import StepTimes

MAX_EVENTS = 100_000
# A track reads finished device marks once this many are pending, so that few accumulate in a long run.
DRAIN_AT = 256
REBASE_NS = 10 * 10**9

SpanPath = tuple[str, ...]


class Event(NamedTuple):
    """A finished span: its path, and its start and end in nanoseconds since the recorder began."""

    path: SpanPath
    start: int
    end: int


class CounterValue(NamedTuple):
    """A value at a time; time: nanoseconds since the recorder began."""

    name: str
    time: int
    value: float


@dataclass(slots=True)
class Total:
    """Sums over all spans with one path in one track."""

    count: int = 0
    host_ns: int = 0
    device_seconds: float = 0.0
    on_device: bool = False

    @property
    def seconds(self) -> float:
        """Device seconds if the device was timed, else host seconds."""
        return self.device_seconds if self.on_device else self.host_ns / 1e9


class Track:
    """The spans of one thread (and, on a GPU, one stream). Only that thread writes here, so no lock is needed."""

    def __init__(self, name: str, max_events: int) -> None:
        self.name = name
        self.path: SpanPath = ()
        # Keyed by (path, whether the stage was in its steady state).
        self.totals: dict[tuple[SpanPath, bool], Total] = {}
        self.events: deque[Event] = deque(maxlen=max_events)
        self.device_events: deque[Event] = deque(maxlen=max_events)
        self.recorded = 0
        self.pending: deque[tuple[SpanPath, bool, Any, Any]] = deque()


class SpanRecorder:
    """Adds up the seconds of named spans by path (`("pp", "generator")`), in one track per thread.

    A top-level span opened by the thread that created the recorder is a stage. Spans of other threads, and of other streams
    on a GPU, are kept in separate tracks under the stage open at that time: a producer's spans under its trainer's stage.

    On a GPU each span also marks its stream at both ends. The host never waits for a mark: finished marks are read
    opportunistically, the rest by `resolve`. From then on a path's `seconds` are device seconds between the two marks.

    Totals are always complete; of the events, which are for a trace, the newest `max_events` of each track are kept.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        max_events: int = MAX_EVENTS,
        clock: Callable[[], int] = time.perf_counter_ns,
        timer: CudaTimer | None = None,
    ) -> None:
        self.max_events = max_events
        self.steps: dict[str, StepTimes] = {}
        self.marks: deque[CounterValue] = deque(maxlen=max_events)
        self.counters: deque[CounterValue] = deque(maxlen=max_events)
        self.counter_totals: dict[tuple[str, str], tuple[int, float, float, float]] = {}
        self.stage = ""
        self._clock = clock
        self.began = clock()
        self._timer = timer or device_timer(device)
        self._owner = threading.get_ident()
        self._main_stream: Hashable = self._timer.stream() if self._timer else None
        self._lock = threading.Lock()
        self._tracks: dict[Hashable, Track] = {}
        self._steady = False
        self._step_began = 0
        self._base: Any = self._timer.mark() if self._timer else None
        self._base_ns = 0
        if self._timer:
            # Synchronize once, before the first step, to align the host's and the device's clocks.
            self._timer.synchronize()
            self._base_ns = self.now()
        self.main = self._track()

    def now(self) -> int:
        """Nanoseconds since the recorder began."""
        return self._clock() - self.began

    def __call__(self, name: str) -> Span:
        return Span(self, name)

    def step(self, stage: str | None = None, *, last: bool = False, measured: bool = True) -> None:
        """Mark the end of a step of the main thread's stage. last: what follows in this stage belongs to no step.

        measured: False for a step that ran under another instrument, see `StepTimes.add`.
        """
        now, stage = self.now(), stage or self.stage
        times = self.steps.setdefault(stage, StepTimes())
        times.add(now - self._step_began, measured=measured)
        self._step_began = now
        self._steady = times.steady and not last
        self.marks.append(CounterValue(stage, now, times.count))

    def counter(self, name: str, value: float) -> None:
        """Record a quantity that changes over time, such as a ring's depth; may be called from any thread."""
        with self._lock:
            self.counters.append(CounterValue(name, self.now(), value))
            key = (self.stage, name)
            count, total, greatest, _ = self.counter_totals.get(key, (0, 0.0, value, value))
            self.counter_totals[key] = (count + 1, total + value, max(greatest, value), value)

    @property
    def steady(self) -> bool:
        """Whether spans that end now count towards the steady state."""
        return self._steady

    def begin_step(self, *, steady: bool) -> None:
        """Start the next step now instead of at the end of the last one: an instrument ran between them."""
        self._step_began = self.now()
        self._steady = steady

    def tracks(self) -> list[Track]:
        with self._lock:
            return list(self._tracks.values())

    @property
    def dropped(self) -> int:
        """Number of events that the tracks have discarded."""
        return sum(track.recorded - len(track.events) for track in self.tracks())

    def _track(self) -> Track:
        thread = threading.get_ident()
        stream = self._timer.stream() if self._timer else None
        key = (thread, stream)
        track = self._tracks.get(key)
        if track is None:
            if thread == self._owner:
                name = MAIN if stream == self._main_stream else f"{MAIN}, stream {stream}"
            else:
                name = threading.current_thread().name
            with self._lock:
                taken = {other.name for other in self._tracks.values()}
                if name in taken:
                    name = f"{name} ({len(taken)})"
                track = self._tracks[key] = Track(name, self.max_events)
        return track

    def _open_stage(self, name: str) -> None:
        self.stage = name
        self._step_began = self.now()
        self._steady = False

    def _drain(self, track: Track, *, everything: bool = False) -> None:
        timer = self._timer
        assert timer is not None
        while track.pending and (everything or timer.ready(track.pending[0][3])):
            path, steady, first, second = track.pending.popleft()
            seconds = timer.seconds(first, second)
            total = track.totals[path, steady]
            total.device_seconds += seconds
            total.on_device = True
            duration = int(seconds * 1e9)
            with self._lock:
                start = self._base_ns + int(timer.seconds(self._base, first) * 1e9)
                spare = second
                # Event times are float32 milliseconds, accurate only over short intervals, so the base moves along.
                if start - self._base_ns > REBASE_NS:
                    spare, self._base, self._base_ns = self._base, second, start + duration
            timer.recycle(first)
            timer.recycle(spare)
            track.device_events.append(Event(path, start, start + duration))

    def resolve(self) -> None:
        """Wait for the device once and read all remaining marks. Call it when no span is open any more."""
        if self._timer:
            self._timer.synchronize()
            for track in self.tracks():
                self._drain(track, everything=True)

    def totals(self, track: Track | None = None) -> dict[SpanPath, tuple[Total, Total]]:
        """The total of each path of a track (by default the main one), and its steady-state part, in order of first use."""
        merged: dict[SpanPath, tuple[Total, Total]] = {}
        for (path, steady), part in list((track or self.main).totals.items()):
            whole, steadily = merged.setdefault(path, (Total(), Total()))
            for total in (whole, steadily) if steady else (whole,):
                total.count += part.count
                total.host_ns += part.host_ns
                total.device_seconds += part.device_seconds
                total.on_device |= part.on_device
        return merged

    @property
    def seconds(self) -> dict[SpanPath, float]:
        """Seconds of each path of the main track."""
        return {path: whole.seconds for path, (whole, _) in self.totals().items()}


class Span:
    """One use of a span, created by `SpanRecorder`."""

    __slots__ = ("_first", "_name", "_parent", "_path", "_recorder", "_started", "_track")

    def __init__(self, recorder: SpanRecorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def __enter__(self) -> None:
        recorder = self._recorder
        track = self._track = recorder._track()
        self._parent = track.path
        if track is recorder.main:
            if not track.path:
                recorder._open_stage(self._name)
            self._path = (*track.path, self._name)
        else:
            # Another thread's outermost span belongs to the stage that is open now.
            self._path = (
                *(track.path or ((recorder.stage,) if recorder.stage else ())),
                self._name,
            )
        track.path = self._path
        self._first = recorder._timer.mark() if recorder._timer else None
        self._started = recorder.now()

    def __exit__(self, *exception: object) -> None:
        recorder, track, path = self._recorder, self._track, self._path
        ended = recorder.now()
        track.path = self._parent
        key = (path, recorder._steady)
        total = track.totals.get(key)
        if total is None:
            total = track.totals[key] = Total()
        total.count += 1
        total.host_ns += ended - self._started
        track.recorded += 1
        track.events.append(Event(path, self._started, ended))
        if self._first is not None:
            second = recorder._timer.mark() if recorder._timer else None
            if second is not None:
                track.pending.append((path, key[1], self._first, second))
                if len(track.pending) >= DRAIN_AT:
                    recorder._drain(track)
        if not self._parent and track is recorder.main:
            recorder.stage = ""
