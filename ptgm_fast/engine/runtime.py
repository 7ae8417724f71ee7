"""Two lanes of work - a producer's and the consumer's - and the events that order them."""

from __future__ import annotations

import enum
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ptgm_fast.spans import Spans, no_spans


class Lane(enum.Enum):
    """Work of one lane runs in the order it was queued; between lanes only events order it."""

    PRODUCER = "producer"
    CONSUMER = "consumer"


class Runtime(Protocol):
    """What the ring needs of a device. All are called from the consumer's thread.

    copies: slots own memory that batches are copied into. Where the lanes run behind the host's back (streams), a
    batch's own memory could be given to somebody else while it is still read.
    """

    copies: bool

    def launch(self, work: Callable[[], None]) -> None:
        """Queue work on the producer's lane. `work` does not raise."""

    def record(self, lane: Lane) -> Any:
        """An event that happens when everything queued on the lane so far has been done."""

    def wait(self, lane: Lane, event: Any) -> None:
        """What is queued on the lane from now on starts after the event."""

    def happened(self, event: Any) -> bool:
        """Whether the event has happened by now; never waits."""

    def close(self) -> None:
        """Wait for what runs, drop what is queued, give back threads and streams. May be called again."""


class InlineRuntime:
    """No overlap: the producer's work is done when it is asked for, on the consumer's own threads."""

    copies = False

    def launch(self, work: Callable[[], None]) -> None:
        work()

    def record(self, lane: Lane) -> None:
        return None

    def wait(self, lane: Lane, event: None) -> None:
        return None

    def happened(self, event: None) -> bool:
        return True

    def close(self) -> None:
        return None


# How many runtimes hold a share of the consumer's threads, and what it had before the first of them.
_shares_held = 0
_threads_before = 0


def _take_share(num_threads: int) -> None:
    global _shares_held, _threads_before
    if _shares_held == 0:
        _threads_before = torch.get_num_threads()
    _shares_held += 1
    torch.set_num_threads(num_threads)


def _give_back() -> None:
    global _shares_held
    _shares_held -= 1
    if _shares_held == 0:
        torch.set_num_threads(_threads_before)


class ThreadRuntime:
    """CPUs: the producer is a thread of this process, with a share of the cores.

    torch's threads, and the fused ops', are counted for each thread of Python apart (OpenMP's nthreads-var belongs to the
    thread): the producer's count leaves the consumer's alone. A consumer's event has happened when it is recorded, for
    its work is done by then.
    """

    copies = False

    def __init__(
        self,
        num_threads: int = 1,
        consumer_threads: int | None = None,
        *,
        spans: Spans = no_spans,
    ) -> None:
        """num_threads: for the producer's torch operations; consumer_threads: for the calling thread's until `close`.

        spans: the producer's idle time is its "ring wait". Raises ValueError below 1.
        """
        if min(num_threads, consumer_threads or 1) < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        self.num_threads, self._spans = num_threads, spans
        self._shares = consumer_threads is not None
        if consumer_threads is not None:
            _take_share(consumer_threads)
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ptgm-fast producer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        torch.set_num_threads(self.num_threads)
        while (work := self._next()) is not None:
            work()

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            with self._spans("ring wait"):
                return self._queue.get()

    def launch(self, work: Callable[[], None]) -> None:
        def unless_closing() -> None:
            if not self._closing.is_set():
                work()

        self._queue.put(unless_closing)

    def record(self, lane: Lane) -> threading.Event:
        event = threading.Event()
        if lane is Lane.PRODUCER:
            self._queue.put(event.set)
        else:
            event.set()
        return event

    def wait(self, lane: Lane, event: threading.Event) -> None:
        if lane is Lane.CONSUMER:
            event.wait()
        # A consumer's event has happened already.

    def happened(self, event: threading.Event) -> bool:
        return event.is_set()

    def close(self) -> None:
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        if self._shares:
            self._shares = False
            _give_back()


class StreamRuntime:
    """GPUs: the producer is a stream of its own, in the order that events on both streams allow.

    Works with torch.cuda (CUDA and ROCm) and torch.xpu, whose streams and events are the same. Not verified on a device:
    the order of waits and records is checked against a stand-in that records them.
    """

    copies = True

    def __init__(self, device: torch.device, module: Any = None) -> None:
        """module: torch.cuda or torch.xpu; found by the device's type."""
        self._device = device
        self._module = module or torch.get_device_module(device)
        # 0 is the lowest priority there is, and a current stream's default: synthesis never goes first.
        self._producer = self._module.Stream(device=device, priority=0)
        # What made the generator's weights was queued on the consumer's stream.
        self._producer.wait_stream(self._module.current_stream(device))

    def _stream(self, lane: Lane) -> Any:
        if lane is Lane.PRODUCER:
            return self._producer
        return self._module.current_stream(self._device)

    def launch(self, work: Callable[[], None]) -> None:
        with self._module.stream(self._producer):
            work()

    def record(self, lane: Lane) -> Any:
        event = self._module.Event()
        event.record(self._stream(lane))
        return event

    def wait(self, lane: Lane, event: Any) -> None:
        self._stream(lane).wait_event(event)

    def happened(self, event: Any) -> bool:
        return bool(event.query())

    def close(self) -> None:
        self._producer.synchronize()
