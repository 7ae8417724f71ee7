"""Batches in order, made ahead where that pays."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ptgm_fast.engine.batch import Batch
from ptgm_fast.engine.overlap import half, plan_overlap
from ptgm_fast.engine.spans import Spans, no_spans

Produce = Callable[[int], Batch]
Overlap = Literal["auto"] | bool
# Batches in each half of the measurement of overlap="auto"; the first of them are not counted.
MEASURED, SETTLING = 8, 3


class BatchStream(IterableDataset[Batch]):
    """produce(0), produce(1), ... of produce = begin() as an iterable dataset: iterate it, or give it to a DataLoader with batch_size=None.

    A DataLoader's workers share the batches: worker w of W makes the numbers w, w + W, ..., without a thread of its own.
    Every iteration begins anew. overlap: True makes batches ahead (GPUs: on a stream; CPUs: in a thread that takes half
    of torch's threads from the consumer until the iteration ends), False does not; "auto" is True on GPUs, and on CPUs
    measures both ways on the first 16 batches, consumer included, and goes on with the faster; with one thread it is False.
    """

    def __init__(
        self,
        begin: Callable[[], Produce],
        *,
        num_batches: int | None,
        depth: int,
        overlap: Overlap,
        device: torch.device,
        describe: Callable[[int], str],
        spans: Spans = no_spans,
    ) -> None:
        super().__init__()
        self._begin, self._num_batches = begin, num_batches
        self._depth, self._overlap, self._device = depth, overlap, device
        self._describe, self._spans = describe, spans
        self._running: weakref.WeakSet[Any] = weakref.WeakSet()
        # What "auto" measured, seconds a batch, of the last iteration that got so far.
        self.measured: dict[str, float] | None = None

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("this stream has no end; give num_batches")
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        worker, produce = get_worker_info(), self._begin()
        if worker is not None:
            return self._of_worker(produce, worker.id, worker.num_workers)
        threads = torch.get_num_threads()
        if self._device.type != "cpu":
            return self._run(produce, 0, self._num_batches, self._overlap is not False)
        if threads == 1 or self._overlap is False:
            return self._run(produce, 0, self._num_batches, False)
        if self._overlap is True:
            return self._run(produce, 0, self._num_batches, True)
        return self._measured_run(produce)

    def close(self) -> None:
        """End the iterations that still run, with their threads."""
        for running in list(self._running):
            running.close()

    def _of_worker(self, produce: Produce, worker: int, num_workers: int) -> Iterator[Batch]:
        index = worker
        while self._num_batches is None or index < self._num_batches:
            yield produce(index)
            index += num_workers

    def _run(
        self, produce: Produce, start: int, stop: int | None, overlap: bool
    ) -> Iterator[Batch]:
        """A generator: leaving it in whatever way stops the producer and gives the consumer's threads back."""
        plan = half(torch.get_num_threads()) if overlap else plan_overlap("never", self._device)
        ring = plan.ring(
            produce,
            self._device,
            start=start,
            stop=stop,
            depth=self._depth,
            describe=self._describe,
            spans=self._spans,
        )
        self._running.add(ring)
        try:
            yield from ring
        finally:
            ring.close()

    def _measured_run(self, produce: Produce) -> Iterator[Batch]:
        """Both ways on the first batches, then the faster. The seconds are the consumer's: its own work is in them."""
        seconds: dict[bool, float] = {}
        position = 0
        for overlap in (False, True):
            end = position + MEASURED
            if self._num_batches is not None and end > self._num_batches:
                break
            taken = []
            started = time.perf_counter()
            for batch in self._run(produce, position, end, overlap):
                yield batch
                now = time.perf_counter()
                taken.append(now - started)
                started = now
            seconds[overlap] = statistics.median(taken[SETTLING:])
            position = end
        if len(seconds) == 2:
            self.measured = {"alone": seconds[False], "overlapped": seconds[True]}
        faster = len(seconds) == 2 and seconds[True] < seconds[False]
        yield from self._run(produce, position, self._num_batches, faster)
