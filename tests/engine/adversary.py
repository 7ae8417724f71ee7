"""A runtime that runs queued work in any order that the events allow, and stamps the contents of the slots.

Both lanes are queues, like streams: the ring's requests run later, when the chooser picks a lane. A lane whose
next entry waits for an event that has not happened cannot be picked; if that holds for both while something is queued, it
is a deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ptgm_fast.engine import Lane, Ring, Slot


class Hazard(AssertionError):
    """A slot was read before it was written, written while it was read, or the lanes wait for each other."""


class Adversary:
    """choose(n) picks one of n lanes, which determines the order."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose = choose
        self._queues: dict[Lane, deque[tuple[str, Any]]] = {lane: deque() for lane in Lane}
        self.happened: set[int] = set()
        self._num_events = 0
        self.reading: dict[int, int] = {}
        self.log: list[int] = []

    def launch(self, work: Callable[[], None]) -> None:
        self._queues[Lane.PRODUCER].append(("work", work))
        self._some()

    def record(self, lane: Lane) -> int:
        self._num_events += 1
        self._queues[lane].append(("event", self._num_events))
        self._some()
        return self._num_events

    def wait(self, lane: Lane, event: int) -> None:
        self._queues[lane].append(("wait", event))
        self._some()

    def hand_over(self, batch: Any) -> None:
        return None

    def close(self) -> None:
        while self._step():
            pass
        if any(self._queues.values()):
            raise Hazard("deadlock: both lanes wait")

    def read(self, slot: Slot[int], expected: int) -> None:
        """Read a slot on the consumer's lane: a start and an end, between which the other lane may run."""

        def begin() -> None:
            if slot.batch != expected:
                raise Hazard(f"read batch {slot.batch} where {expected} was asked for")
            self.reading[id(slot)] = expected

        def end() -> None:
            if slot.batch != expected:
                raise Hazard(f"batch {expected} was overwritten by {slot.batch} while it was read")
            del self.reading[id(slot)]
            self.log.append(expected)

        self._queues[Lane.CONSUMER].append(("work", begin))
        self._queues[Lane.CONSUMER].append(("work", end))
        self._some()

    def _some(self) -> None:
        while self._choose(2) and self._step():
            pass

    def _step(self) -> bool:
        able = [lane for lane in Lane if self._can(lane)]
        if not able:
            return False
        kind, what = self._queues[able[self._choose(len(able))]].popleft()
        if kind == "event":
            self.happened.add(what)
        elif kind == "work":
            what()
        return True

    def _can(self, lane: Lane) -> bool:
        queue = self._queues[lane]
        return bool(queue) and (queue[0][0] != "wait" or queue[0][1] in self.happened)


class ReadingRing(Ring[int]):
    """Hands out slots, which are read on the consumer's lane as on a GPU."""

    def _take(self, slot: Slot[int]) -> Any:
        return slot


def consume(ring_type: type[ReadingRing], num: int, depth: int, choose: Callable[[int], int]) -> list[int]:  # fmt: skip
    """Make and read `num` batches; return the batches read, in order. Raises Hazard."""
    adversary = Adversary(choose)

    def produce(index: int) -> int:
        return index

    ring = ring_type(produce, stop=num, depth=depth, runtime=adversary)
    for index, slot in enumerate(ring):
        adversary.read(slot, index)  # type: ignore[arg-type]
    ring.close()
    adversary.close()
    return adversary.log


def choices(numbers: Iterator[int]) -> Callable[[int], int]:
    return lambda n: next(numbers, 0) % n
