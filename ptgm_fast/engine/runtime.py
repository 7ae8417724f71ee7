"""Two lanes of work - a producer's and the consumer's - and the events that order them."""

from __future__ import annotations

import enum
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_leaves

from ptgm_fast.spans import Spans, no_spans


class Lane(enum.Enum):
    """Work on one lane runs in the order it was queued; across lanes, only events impose an order."""

    PRODUCER = "producer"
    CONSUMER = "consumer"


class Runtime(Protocol):
    """What the ring needs from a device. All methods are called from the consumer's thread."""

    def launch(self, work: Callable[[], None]) -> None:
        """Queue work on the producer's lane. `work` does not raise."""

    def record(self, lane: Lane) -> Any:
        """An event that happens once everything queued on the lane so far is done."""

    def wait(self, lane: Lane, event: Any) -> None:
        """Make everything queued on the lane from now on wait for the event."""

    def happened(self, event: Any) -> bool:
        """Whether the event has happened yet; never blocks."""

    def hand_over(self, batch: Any) -> None:
        """Declare that the batch is read on the consumer's lane from now on."""

    def close(self) -> None:
        """Wait for running work, drop queued work, release threads and streams. Idempotent."""


class InlineRuntime:
    """No overlap: the producer's work runs on demand, on the consumer's own threads."""

    def launch(self, work: Callable[[], None]) -> None:
        work()

    def record(self, lane: Lane) -> None:
        return None

    def wait(self, lane: Lane, event: None) -> None:
        return None

    def happened(self, event: None) -> bool:
        return True

    def hand_over(self, batch: Any) -> None:
        return None

    def close(self) -> None:
        return None


# How many runtimes hold a share of the consumer's threads, and its thread count before the first of them.
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

    The thread count of torch and of the fused ops is set per Python thread (OpenMP's nthreads-var belongs to the
    thread), so setting the producer's leaves the consumer's alone. A consumer's event has happened as soon as it is
    recorded, because the consumer's work is done by then.
    """

    def __init__(
        self,
        num_threads: int = 1,
        consumer_threads: int | None = None,
        *,
        spans: Spans = no_spans,
    ) -> None:
        """num_threads: for the producer's torch operations; consumer_threads: for the calling thread's, until `close`.

        spans: record the producer's idle time as "ring wait". Raises ValueError for thread counts below 1.
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

    def hand_over(self, batch: Any) -> None:
        return None

    def close(self) -> None:
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        if self._shares:
            self._shares = False
            _give_back()


# One producer stream per device: memory freed on a stream stays with that stream, and one per stage would add up.
_producers: dict[Any, Any] = {}


class StreamRuntime:
    """GPUs: the producer runs on a stream of its own, ordered by events on both streams.

    A batch's memory belongs to the producer's stream. On hand-over, the allocator is told that the consumer's stream
    reads it too, so that it is reused only after everything that the consumer had queued when it released the batch.

    Works with torch.cuda (CUDA and ROCm) and torch.xpu, whose streams and events have the same interface. Not verified
    on a device: the order of waits and records is tested with a stand-in that records them.
    """

    def __init__(self, device: torch.device, module: Any = None) -> None:
        """module: torch.cuda or torch.xpu; None selects it by the device's type."""
        self._device = device
        self._module = module or torch.get_device_module(device)
        key = (self._module, device)
        if key not in _producers:
            _producers[key] = self._module.Stream(device=device)
        self._producer = _producers[key]
        # The work that wrote the generator's weights was queued on the consumer's stream.
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

    def hand_over(self, batch: Any) -> None:
        consumer = self._stream(Lane.CONSUMER)
        for tensor in tree_leaves(batch):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._device.type:
                tensor.record_stream(consumer)

    def close(self) -> None:
        self._producer.synchronize()


@contextmanager
def before_producer(device: torch.device, module: Any = None) -> Iterator[None]:
    """On a GPU, run the block on a stream of higher priority than the producer's (which has 0, the lowest).

    A no-op on a CPU. Work queued earlier runs before the block, and the block runs before work queued later.
    """
    if device.type == "cpu":
        yield
        return
    module = module or torch.get_device_module(device)
    outer, inner = module.current_stream(device), module.Stream(device=device, priority=-1)
    inner.wait_stream(outer)
    try:
        with module.stream(inner):
            yield
    finally:
        outer.wait_stream(inner)
