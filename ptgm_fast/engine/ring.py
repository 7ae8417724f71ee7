"""A bounded prefetch queue: a producer that works ahead of its consumer, up to a fixed number of batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from ptgm_fast.engine.runtime import Lane, Runtime
from ptgm_fast.spans import Counter, Spans, no_counter, no_spans

Batch = TypeVar("Batch")


class Slot(Generic[Batch]):
    """A slot of the ring: a batch, and the events that mark it ready to be read and free to be refilled."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.ready: Any = None
        self.free: Any = None


class Ring(Generic[Batch]):
    """Iterates over produce(start), produce(start + 1), ..., made up to `depth` batches ahead.

    The consumer reads a slot only after the producer's event that marks it written. The producer refills it only after
    the consumer's event, recorded when the consumer asks for the next batch, so at most `depth` batches are made ahead.
    The consumer owns a batch for as long as it keeps it: a batch is never overwritten, and a consumer may read ahead.

    An exception in `produce` is raised by the consumer's next call, even if earlier batches are still queued, with its
    traceback and a note that names the batch. Iterating a second time continues. `close`, the end of the iteration, a
    failure and leaving a `with` block all stop the producer.
    """

    def __init__(
        self,
        produce: Callable[[int], Batch],
        *,
        start: int = 0,
        stop: int | None = None,
        depth: int = 3,
        runtime: Runtime,
        describe: Callable[[int], str] = "batch {}".format,
        spans: Spans = no_spans,
        counter: Counter = no_counter,
    ) -> None:
        """stop: index at which to stop (exclusive), None for no end. depth: batches made ahead, at least 1.

        spans, counter: record the consumer's waits as "ring wait", and the number of ready batches at each of its calls
        as "ring depth".
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._produce, self._runtime, self._stop = produce, runtime, stop
        self._describe, self._spans, self._counter = describe, spans, counter
        self._slots: list[Slot[Batch]] = [Slot() for _ in range(depth)]
        self._next, self._launched = start, start
        self._held: Slot[Batch] | None = None
        self._failure: BaseException | None = None
        self._failed = threading.Event()
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        self._release()
        self._launch_ahead()
        self._raise_failure()
        if self._next == self._stop:
            self.close()
            raise StopIteration
        slot = self._slot(self._next)
        if self._counter is not no_counter:
            self._counter("ring depth", self._num_ready())
        with self._spans("ring wait"):
            self._await_ready(slot)
        self._raise_failure()
        self._held, self._next = slot, self._next + 1
        return self._take(slot)

    def __enter__(self) -> Ring[Batch]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the producer and drop the batches. Idempotent."""
        if not self._closed:
            self._closed = True
            self._runtime.close()
            self._slots, self._held = [], None

    def _slot(self, index: int) -> Slot[Batch]:
        return self._slots[index % len(self._slots)]

    def _launch_ahead(self) -> None:
        limit = self._next + len(self._slots)
        while self._launched < limit and self._launched != self._stop and not self._failed.is_set():
            index, slot = self._launched, self._slot(self._launched)
            self._await_free(slot)
            self._runtime.launch(partial(self._fill, index, slot))
            slot.ready = self._runtime.record(Lane.PRODUCER)
            self._launched += 1

    def _fill(self, index: int, slot: Slot[Batch]) -> None:
        if self._failed.is_set():
            return
        try:
            slot.batch = self._produce(index)
        except BaseException as error:
            error.add_note(f"while making {self._describe(index)}")
            self._failure = error
            self._failed.set()

    def _num_ready(self) -> int:
        waiting = (self._slot(index) for index in range(self._next, self._launched))
        return sum(self._runtime.happened(slot.ready) for slot in waiting)

    def _await_free(self, slot: Slot[Batch]) -> None:
        if slot.free is not None:
            self._runtime.wait(Lane.PRODUCER, slot.free)

    def _await_ready(self, slot: Slot[Batch]) -> None:
        self._runtime.wait(Lane.CONSUMER, slot.ready)

    def _release(self) -> None:
        if self._held is not None:
            self._held.free = self._runtime.record(Lane.CONSUMER)
            self._held = None

    def _take(self, slot: Slot[Batch]) -> Batch:
        batch, slot.batch = slot.batch, None
        assert batch is not None
        self._runtime.hand_over(batch)
        return batch

    def _raise_failure(self) -> None:
        if self._failed.is_set():
            failure = self._failure
            self.close()
            assert failure is not None
            raise failure
