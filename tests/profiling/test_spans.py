"""Spans: sums by path, threads as tracks, bounded memory, the steady state, the device's clock by a stand-in."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptgm_fast.profiling import SpanRecorder
from ptgm_fast.profiling.device import CudaTimer
from ptgm_fast.profiling.steady import StepTimes

Tree = tuple[str, int, list["Tree"]]
NAMES = st.sampled_from(["generator", "views", "forward"])
TREES = st.recursive(
    st.tuples(NAMES, st.integers(0, 10**6), st.just([])),
    lambda inner: st.tuples(NAMES, st.integers(0, 10**6), st.lists(inner, max_size=3)),
    max_leaves=12,
)


class Clock:
    """Nanoseconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 12345

    def __call__(self) -> int:
        return self.now


def walk(recorder: SpanRecorder, clock: Clock, tree: Tree) -> None:
    name, own, children = tree
    with recorder(name):
        clock.now += own
        for child in children:
            walk(recorder, clock, child)


def expected(tree: Tree, path: tuple[str, ...], sums: dict[tuple[str, ...], list[int]]) -> int:
    name, own, children = tree
    whole = own + sum(expected(child, (*path, name), sums) for child in children)
    entry = sums.setdefault((*path, name), [0, 0])
    entry[0] += 1
    entry[1] += whole
    return whole


@given(st.lists(TREES, min_size=1, max_size=4))
def test_every_path_has_its_count_and_its_seconds(trees: list[Tree]) -> None:
    clock = Clock()
    recorder = SpanRecorder(clock=clock)
    sums: dict[tuple[str, ...], list[int]] = {}
    for tree in trees:
        walk(recorder, clock, tree)
        expected(tree, (), sums)
    totals = recorder.totals()
    assert {path: [t.count, t.host_ns] for path, (t, _) in totals.items()} == sums


def test_an_exception_closes_its_spans() -> None:
    recorder = SpanRecorder()
    with pytest.raises(KeyError), recorder("stage"), recorder("forward"):
        raise KeyError
    with recorder("next"):
        pass
    assert set(recorder.seconds) == {("stage",), ("stage", "forward"), ("next",)}


def test_threads_have_tracks_under_the_stage_that_is_open() -> None:
    recorder = SpanRecorder()
    started = threading.Barrier(9)

    def produce() -> None:
        started.wait()
        for _ in range(500):
            with recorder("generator"), recorder("upsample"):
                recorder.counter("ring depth", 1.0)

    threads = [threading.Thread(target=produce, name=f"producer {i}") for i in range(8)]
    with recorder("pp"):
        for thread in threads:
            thread.start()
        started.wait()
        for _ in range(500):
            with recorder("forward"):
                pass
        for thread in threads:
            thread.join()
    tracks = recorder.tracks()
    assert sorted(track.name for track in tracks) == ["main", *(f"producer {i}" for i in range(8))]
    for track in tracks:
        counts = {path: whole.count for path, (whole, _) in recorder.totals(track).items()}
        if track.name == "main":
            assert counts == {("pp",): 1, ("pp", "forward"): 500}
        else:
            assert counts == {("pp", "generator"): 500, ("pp", "generator", "upsample"): 500}
    assert recorder.counter_totals[("pp", "ring depth")] == (4000, 4000.0, 1.0, 1.0)
    assert recorder.dropped == 0


def test_events_are_bounded_and_totals_are_whole() -> None:
    recorder = SpanRecorder(max_events=10)
    with recorder("pp"):
        for i in range(1000):
            with recorder("forward"):
                recorder.counter("ring depth", i)
            recorder.step()
    assert [len(track.events) for track in recorder.tracks()] == [10]
    assert len(recorder.counters) == len(recorder.marks) == 10
    assert recorder.dropped == 1001 - 10
    assert recorder.totals()[("pp", "forward")][0].count == 1000
    assert recorder.counter_totals[("pp", "ring depth")][0] == 1000
    # The newest are kept: the stage's own span ended last.
    assert recorder.main.events[-1].path == ("pp",)


def test_warm_up_ends_where_the_steps_settle() -> None:
    times = StepTimes()
    for duration in [900, 500, 300, 200, 150, *[100] * 30]:
        times.add(duration)
    # The five steps of 150 and less before it, and the five from it on, have the same median.
    assert times.settled
    assert 10 <= (times.first_steady or 0) <= 16
    assert times.steady_ns == 100 * times.steady_count
    assert times.steady_count == 35 - (times.first_steady or 0) + 1


@given(st.lists(st.integers(1, 10**9), min_size=60, max_size=200))
def test_the_steady_state_begins_by_step_51_and_counts_every_step_once(
    durations: list[int],
) -> None:
    times = StepTimes()
    for duration in durations:
        times.add(duration)
    first = times.first_steady or 0
    assert 11 <= first <= 51
    assert times.steady_ns == sum(durations[first - 1 :])
    assert times.steady_count == len(durations) - first + 1
    assert min(durations[first - 1 :]) <= times.quantile(0.5) * 1e9 <= max(durations[first - 1 :])


def test_steady_spans_leave_out_warm_up_and_what_follows_the_last_step() -> None:
    clock = Clock()
    recorder = SpanRecorder(clock=clock)
    with recorder("pp"):
        for step in range(20):
            with recorder("forward"):
                clock.now += 10**9 if step == 0 else 1000
            recorder.step(last=step == 19)
        with recorder("evaluation"):
            clock.now += 10**9
    forward, steadily = recorder.totals()[("pp", "forward")]
    assert forward.host_ns == 10**9 + 19 * 1000
    first = recorder.steps["pp"].first_steady
    assert first == 11
    assert (steadily.count, steadily.host_ns) == (10, 10 * 1000)
    assert recorder.totals()[("pp", "evaluation")][1].count == 0


class FakeCuda:
    """torch.cuda as far as the timer asks: streams with clocks of their own, work that is done only later."""

    def __init__(self) -> None:
        self.streams = {0: 0.0, 7: 0.0}
        self.current, self.done, self.synchronized, self.made = 0, 0.0, 0, 0
        self.capturing = False

    def work(self, seconds: float) -> None:
        self.streams[self.current] += seconds

    @contextmanager
    def stream(self, number: int) -> Iterator[None]:
        before, self.current = self.current, number
        yield
        self.current = before

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self, device: Any) -> Any:
        return SimpleNamespace(cuda_stream=self.current)

    def synchronize(self, device: Any) -> None:
        self.synchronized += 1
        self.done = max(self.streams.values())

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        self.made += 1
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.at = cuda, -1.0

    def record(self, stream: Any) -> None:
        assert not self.cuda.capturing
        self.at = self.cuda.streams[stream.cuda_stream]

    def query(self) -> bool:
        return self.at <= self.cuda.done

    def elapsed_time(self, end: "FakeEvent") -> float:
        # As the driver: an error for what has not happened yet, float32 milliseconds for what has.
        assert self.query()
        assert end.query()
        return float(torch.tensor((end.at - self.at) * 1e3, dtype=torch.float32))


def test_a_device_is_timed_by_its_events_without_waiting_for_it() -> None:
    cuda = FakeCuda()
    recorder = SpanRecorder(timer=CudaTimer(torch.device("cuda"), cuda))
    before = cuda.synchronized
    with recorder("pp"):
        for step in range(2000):
            with cuda.stream(7), recorder("generator"):
                cuda.work(0.25)
            with recorder("forward"):
                cuda.work(0.125)
            cuda.work(0.125)
            if step % 100 == 0:
                cuda.done = min(cuda.streams.values()) - 1.0
            recorder.step()
    assert cuda.synchronized == before
    # Finished marks are read in passing and used again.
    assert cuda.made < 1500
    recorder.resolve()
    assert cuda.synchronized == before + 1
    tracks = {track.name: track for track in recorder.tracks()}
    assert set(tracks) == {"main", "main, stream 7"}
    forward = recorder.totals()[("pp", "forward")][0]
    assert forward.on_device
    assert forward.seconds == pytest.approx(2000 * 0.125)
    assert forward.host_ns < 10**9
    generator = recorder.totals(tracks["main, stream 7"])[("pp", "generator")][0]
    assert generator.seconds == pytest.approx(2000 * 0.25)
    # Places on the timeline stay right for minutes, whatever float32 does.
    events = [e for e in tracks["main, stream 7"].device_events if e.path[-1] == "generator"]
    assert len(events) == 2000
    offset = events[0].start
    for number, event in enumerate(events):
        assert (event.start - offset) / 1e9 == pytest.approx(number * 0.25, abs=1e-3)


def test_spans_inside_a_graph_capture_have_the_hosts_time_only() -> None:
    cuda = FakeCuda()
    recorder = SpanRecorder(timer=CudaTimer(torch.device("cuda"), cuda))
    with recorder("pp"):
        cuda.capturing = True
        with recorder("generator"):
            pass
        cuda.capturing = False
    recorder.resolve()
    whole = recorder.totals()[("pp", "generator")][0]
    assert not whole.on_device
    assert whole.count == 1


def test_a_span_costs_far_less_than_two_percent_of_a_step() -> None:
    """A default step takes tens of milliseconds and has 11 spans at most: 2 % of 20 ms is 36 microseconds a span."""
    recorder = SpanRecorder(max_events=1000)
    best = float("inf")
    with recorder("pp"):
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(500):
                with recorder("forward"):
                    pass
            best = min(best, (time.perf_counter() - started) / 500)
    assert best < 36e-6
