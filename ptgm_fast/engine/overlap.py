"""Deciding whether batches are made ahead of their consumer, and setting up the ring that does so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch

from ptgm_fast.engine.ring import Ring
from ptgm_fast.engine.runtime import InlineRuntime, Runtime, StreamRuntime, ThreadRuntime
from ptgm_fast.errors import UserError
from ptgm_fast.sampling import FrozenGenerator, Pool
from ptgm_fast.spans import Counter, Spans, no_counter, no_spans

Batch = TypeVar("Batch")
Overlap = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class OverlapPlan:
    """Whether batches are made ahead, and why."""

    ahead: bool
    reason: str

    def ring(
        self,
        produce: Callable[[int], Batch],
        device: torch.device,
        *,
        start: int = 0,
        stop: int | None = None,
        depth: int,
        describe: Callable[[int], str],
        spans: Spans = no_spans,
        counter: Counter = no_counter,
    ) -> Ring[Batch]:
        """A ring over produce(start), produce(start + 1), ...; without overlap, each batch is made on demand.

        On CPUs the producer is a thread with half of torch's threads; the caller has the other half until the ring closes.
        """
        runtime: Runtime
        if not self.ahead:
            return Ring(
                produce,
                start=start,
                stop=stop,
                depth=1,
                runtime=InlineRuntime(),
                describe=describe,
            )
        if device.type == "cpu":
            threads = torch.get_num_threads()
            share = max(1, threads // 2)
            runtime = ThreadRuntime(share, max(1, threads - share), spans=spans)
        else:
            runtime = StreamRuntime(device)
        return Ring(
            produce,
            start=start,
            stop=stop,
            depth=depth,
            runtime=runtime,
            describe=describe,
            spans=spans,
            counter=counter,
        )


def plan_overlap(choice: Overlap, source: FrozenGenerator | Pool) -> OverlapPlan:
    """Decide whether to overlap. auto: GPUs do, since streams run concurrently; CPUs do not, since both sides share the cores.

    A source that draws from torch's global RNG would draw other numbers if it ran concurrently with training, so it
    never works ahead. The decision does not depend on timing: the same command gives the same bits. Raises ValueError
    for an unknown choice, and UserError for "always" with such a source.
    """
    if choice not in get_args(Overlap):
        raise ValueError(f'overlap must be "auto", "always" or "never", got {choice!r}')
    kind = source.device.type
    if choice == "never":
        return OverlapPlan(False, 'overlap = "never"')
    if choice == "auto" and kind == "cpu":
        return OverlapPlan(False, "on a CPU synthesis and training share the cores")
    if source.draws_from_torch:
        if choice == "always":
            raise UserError(
                'overlap = "always" would change the results of this run: its generator or its source classifier draws '
                'from torch\'s global random number generator. Use "auto" or "never"'
            )
        return OverlapPlan(False, "synthesis draws from torch's global random number generator")
    told = 'overlap = "always"' if kind == "cpu" else f"{kind} streams run concurrently"
    return OverlapPlan(True, told)
