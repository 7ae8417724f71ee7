"""An ordered stream of batches as a dataset, made ahead if the plan says so."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ptgm_fast.engine.batch import Batch
from ptgm_fast.engine.overlap import OverlapPlan
from ptgm_fast.spans import Spans, no_spans

Produce = Callable[[int], Batch]


class BatchStream(IterableDataset[Batch]):
    """An iterable dataset of produce(0), produce(1), ..., where produce = begin().

    Iterate over it, or pass it to a DataLoader with batch_size=None. DataLoader workers share the batches: worker w of W
    makes batches w, w + W, ..., without a producer thread. Every iteration starts from the beginning.
    """

    def __init__(
        self,
        begin: Callable[[], Produce],
        *,
        num_batches: int | None,
        plan: OverlapPlan,
        depth: int,
        device: torch.device,
        describe: Callable[[int], str],
        spans: Spans = no_spans,
    ) -> None:
        super().__init__()
        self._begin, self._num_batches = begin, num_batches
        self._plan, self._depth, self._device = plan, depth, device
        self._describe, self._spans = describe, spans
        self._running: weakref.WeakSet[Any] = weakref.WeakSet()

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("this stream is endless and has no length; pass num_batches")
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """A generator: leaving it in any way stops the producer and gives the consumer its threads back."""
        worker, produce = get_worker_info(), self._begin()
        if worker is not None:
            index = worker.id
            while self._num_batches is None or index < self._num_batches:
                yield produce(index)
                index += worker.num_workers
            return
        ring = self._plan.ring(
            produce,
            self._device,
            stop=self._num_batches,
            depth=self._depth,
            describe=self._describe,
            spans=self._spans,
        )
        self._running.add(ring)
        try:
            yield from ring
        finally:
            ring.close()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without this process's running iterations, for workers that are not forked."""
        return {name: value for name, value in vars(self).items() if name != "_running"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _running=weakref.WeakSet())

    def close(self) -> None:
        """Stop the iterations that are still running, and their threads."""
        for running in list(self._running):
            running.close()
