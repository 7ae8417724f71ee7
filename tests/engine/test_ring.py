"""The ring: order, overlap, failures; all orders that events allow; planted bugs are found."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptgm_fast.engine import InlineRuntime, Ring, Slot, StreamRuntime, ThreadRuntime
from ptgm_fast.engine.runtime import before_producer

sys.path.insert(0, str(Path(__file__).parent))
from adversary import Hazard, ReadingRing, choices, consume


class NoWaitForWrite(ReadingRing):
    def _await_ready(self, slot: Slot[int]) -> None:
        return None


class NoWaitForRead(ReadingRing):
    def _await_free(self, slot: Slot[int]) -> None:
        return None


class FreedEarly(ReadingRing):
    """Releases a slot before its reader is queued."""

    def _take(self, slot: Slot[int]) -> Any:
        self._held = slot
        self._release()
        return slot


class OneTooFar(ReadingRing):
    """Launches one batch more than there are slots."""

    def _launch_ahead(self) -> None:
        super()._launch_ahead()
        index, slot = self._launched, self._slot(self._launched)
        if index != self._stop and self._next > 0:
            self._runtime.launch(lambda: self._fill(index, slot))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=150), st.integers(0, 12), st.integers(1, 5))
def test_no_order_that_the_events_allow_is_wrong(order: list[int], num: int, depth: int) -> None:
    assert consume(ReadingRing, num, depth, choices(iter(order))) == list(range(num))


@pytest.mark.parametrize("fault", [NoWaitForWrite, NoWaitForRead, FreedEarly, OneTooFar])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_planted_faults_are_found(fault: type[ReadingRing], depth: int) -> None:
    found = 0
    for seed in range(300):
        generator = random.Random(seed)
        try:
            if consume(fault, 9, depth, generator.randrange) != list(range(9)):
                found += 1
        except Hazard:
            found += 1
    assert found, "no order showed it"


def test_waiting_for_each_other_is_found() -> None:
    class Crossed(ReadingRing):
        def _await_ready(self, slot: Slot[int]) -> None:
            # The producer waits for something that the consumer does only afterwards.
            self._runtime.wait(next(iter(self._runtime._queues)), 10_000)  # type: ignore[attr-defined]
            super()._await_ready(slot)

    with pytest.raises(Hazard, match="deadlock"):
        consume(Crossed, 4, 2, random.Random(0).randrange)


@pytest.mark.parametrize("make", [InlineRuntime, ThreadRuntime])
@pytest.mark.parametrize("depth", range(1, 9))
def test_order_and_bounds(make: Callable[[], Any], depth: int) -> None:
    made: list[int] = []

    def produce(index: int) -> int:
        made.append(index)
        return index * index

    with Ring(produce, start=3, stop=23, depth=depth, runtime=make()) as ring:
        for index, value in enumerate(ring, 3):
            assert value == index * index
            assert len(made) <= index - 3 + depth + 1
    assert made == list(range(3, 23))


def test_work_overlaps() -> None:
    seconds, took = 0.01, []
    # The best of a few, since others may use the machine.
    for _ in range(5):
        started = time.perf_counter()
        for _ in Ring(lambda i: time.sleep(seconds) or i, stop=20, runtime=ThreadRuntime()):
            time.sleep(seconds)
        took.append(time.perf_counter() - started)
        if took[-1] < 20 * 2 * seconds * 0.8:
            return
    pytest.fail(f"one after the other takes {20 * 2 * seconds:.1f} s, and overlapping {took}")


@pytest.mark.parametrize("make", [InlineRuntime, ThreadRuntime])
def test_a_failure_reaches_the_consumer_with_its_place(make: Callable[[], Any]) -> None:
    def produce(index: int) -> int:
        if index == 4:
            raise KeyError("broken lens")
        return index

    got: list[int] = []
    ring = Ring(produce, stop=9, depth=3, runtime=make())

    def consume_slowly() -> None:
        for value in ring:
            got.append(value)
            time.sleep(0.01)

    with pytest.raises(KeyError, match="broken lens") as caught:
        consume_slowly()
    # Immediately, not after the batches made before it.
    assert len(got) < 4
    assert caught.value.__notes__ == ["while making batch 4"]
    assert any(frame.name == "produce" for frame in caught.traceback)
    assert list(ring) == []


def test_leaving_ends_the_thread() -> None:
    before = threading.active_count()

    def leave_early() -> None:
        with Ring(lambda i: i, runtime=ThreadRuntime()) as ring:
            for value in ring:
                if value == 5:
                    raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        leave_early()
    assert threading.active_count() == before


def test_a_slow_producer_is_not_waited_for_long_when_left() -> None:
    release = threading.Event()
    ring = Ring(lambda i: release.wait(5) and i, runtime=ThreadRuntime())
    closer = threading.Timer(0.05, release.set)
    closer.start()
    started = time.perf_counter()
    next(ring)
    ring.close()
    assert time.perf_counter() - started < 2


class FakeStream:
    """A stream that records what is queued on it."""

    def __init__(self, log: list[Any], name: str) -> None:
        self.log, self.name = log, name

    def wait_event(self, event: Any) -> None:
        self.log.append(("wait", self.name, event.number))

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(("wait stream", self.name, other.name))

    def synchronize(self) -> None:
        self.log.append(("synchronize", self.name))


class FakeDevice:
    """Stands in for torch.cuda: streams and events that write a log."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.current = FakeStream(self.log, "consumer")
        self.num_events = 0
        device = self

        class Event:
            def __init__(self) -> None:
                device.num_events += 1
                self.number = device.num_events

            def record(self, stream: FakeStream) -> None:
                device.log.append(("record", stream.name, self.number))

        self.Event = Event

    def Stream(self, device: Any, priority: int = 0) -> FakeStream:
        return FakeStream(self.log, "producer" if priority == 0 else f"priority {priority}")

    def current_stream(self, device: Any) -> FakeStream:
        return self.current

    def stream(self, stream: FakeStream) -> Any:
        device = self

        class Within:
            def __enter__(self) -> None:
                self.before, device.current = device.current, stream

            def __exit__(self, *_: object) -> None:
                device.current = self.before

        return Within()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_streams_wait_for_each_other(depth: int) -> None:
    """A recorded device's trace against the ring's rules: program order within a lane, events across lanes."""
    fake = FakeDevice()
    num = 7

    def produce(index: int) -> torch.Tensor:
        fake.log.append(("write", fake.current.name, index))
        return torch.full((2,), index)

    runtime = StreamRuntime(torch.device("cuda"), module=fake)
    for index, batch in enumerate(Ring(produce, stop=num, depth=depth, runtime=runtime)):
        assert batch.tolist() == [index, index]
        fake.log.append(("read", fake.current.name, index))
    assert fake.log[0] == ("wait stream", "producer", "consumer")
    # What is known to be done: everything earlier on the same lane, and everything before the awaited events.
    known: dict[str, set[Any]] = {"producer": set(), "consumer": set()}
    at_event: dict[int, set[Any]] = {}
    for kind, lane, *what in fake.log:
        if kind == "record":
            at_event[what[0]] = set(known[lane])
        elif kind == "wait":
            known[lane] |= at_event[what[0]]
        elif kind in ("read", "write"):
            assert lane == ("producer" if kind == "write" else "consumer")
            if kind == "read":
                assert ("write", what[0]) in known[lane]
            elif what[0] >= depth:
                assert ("read", what[0] - depth) in known[lane]
            known[lane].add((kind, what[0]))
    assert {("read", i) for i in range(num)} <= known["consumer"]
    assert fake.log[-1] == ("synchronize", "producer")


class OnDevice(torch.Tensor):
    """A tensor that pretends to be on a GPU and tells the allocator's stand-in which streams read it."""

    device = torch.device("cuda")  # type: ignore[assignment]
    readers: list[str]

    def record_stream(self, stream: FakeStream) -> None:
        self.readers.append(stream.name)


def on_device(value: int) -> OnDevice:
    made = torch.full((2,), value).as_subclass(OnDevice)
    made.readers = []
    return made


def test_a_consumer_may_read_ahead_and_keep_what_it_got() -> None:
    """A batch belongs to its consumer: reading all of them first, as list() and some loaders do, changes none."""
    fake = FakeDevice()
    runtime = StreamRuntime(torch.device("cuda"), module=fake)
    ring = Ring(lambda i: (on_device(i), {"more": [on_device(-i)]}), stop=9, runtime=runtime)
    kept = list(ring)
    for index, (first, others) in enumerate(kept):
        for made, value in ((first, index), (others["more"][0], -index)):
            assert made.tolist() == [value, value]
            assert made.readers == ["consumer"]
    memory = {made.data_ptr() for first, others in kept for made in (first, *others["more"])}
    assert len(memory) == 2 * 9


def test_a_device_has_one_producers_stream() -> None:
    fake = FakeDevice()
    first, second = (StreamRuntime(torch.device("cuda"), module=fake) for _ in range(2))
    other = StreamRuntime(torch.device("cuda", 1), module=fake)
    assert first._producer is second._producer
    assert other._producer is not first._producer


def test_training_goes_before_the_producer() -> None:
    """It runs on a stream of higher priority, ordered after earlier work and before later work."""
    fake = FakeDevice()
    with before_producer(torch.device("cuda"), module=fake):
        assert fake.current.name == "priority -1"
    assert fake.current.name == "consumer"
    assert fake.log == [
        ("wait stream", "priority -1", "consumer"),
        ("wait stream", "consumer", "priority -1"),
    ]
    # A stage that was stopped or failed leaves its stream correctly ordered, too.
    fake.log.clear()
    with pytest.raises(KeyError), before_producer(torch.device("cuda"), module=fake):
        raise KeyError
    assert fake.log[-1] == ("wait stream", "consumer", "priority -1")
    with before_producer(torch.device("cpu"), module=fake):
        assert fake.current.name == "consumer"
