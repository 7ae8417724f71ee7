"""Whether batches are made ahead of their consumer, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from ptgm_fast.engine.ring import Ring
from ptgm_fast.engine.runtime import InlineRuntime, Runtime, StreamRuntime, ThreadRuntime
from ptgm_fast.engine.spans import Counter, Spans, no_counter, no_spans

Batch = TypeVar("Batch")

Choice = Literal["auto", "always", "never"]
# n threads do the work of n ** SCALING: two 1.77 times that of one. Steps of P-SSL and PP, and the letters generator, have
# 1.6 to 1.9 in benchmarks/results.
SCALING = 0.82
# Overlap is chosen for a predicted gain, not for a tie.
LEAST_GAIN = 1.05


@dataclass(frozen=True)
class OverlapPlan:
    """Whether batches are made ahead, why, and, on CPUs, how many of the process's threads make them."""

    ahead: bool
    reason: str
    producer_threads: int = 0

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
        """The ring that does so; until it is closed the calling thread has only the rest of its threads (CPUs)."""
        return Ring(
            produce,
            start=start,
            stop=stop,
            # Without overlap a batch is made when it is asked for.
            depth=depth if self.ahead else 1,
            runtime=self._runtime(device, spans),
            describe=describe,
            spans=spans if self.ahead else no_spans,
            counter=counter if self.ahead else no_counter,
        )

    def _runtime(self, device: torch.device, spans: Spans) -> Runtime:
        if not self.ahead:
            return InlineRuntime()
        if device.type != "cpu":
            return StreamRuntime(device)
        threads = torch.get_num_threads()
        share = self.producer_threads
        return ThreadRuntime(share, max(1, threads - share), spans=spans)


def half(threads: int) -> OverlapPlan:
    """Ahead, with half of a CPU's threads: where nothing is known of the two sides' work."""
    return OverlapPlan(True, "asked for", max(1, threads // 2))


def plan_overlap(
    choice: Choice,
    device: torch.device,
    *,
    threads: int = 1,
    work: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
) -> OverlapPlan:
    """Decide by rule, without a clock: the same command gives the same split of the threads, and so the same bits.

    On GPUs auto overlaps. On a CPU both sides share the cores, and who gains depends on how even they are: with
    operations S of the producer and T of the consumer a step takes (S + T) / n^a alone and
    max(S / p^a, T / (n - p)^a) with p of the n threads ahead, a = `SCALING`. auto takes the best p if that is `LEAST_GAIN`
    times as fast, "always" takes it whatever it gives. work() counts (S, T) and is called on CPUs only.
    """
    if choice == "never":
        return OverlapPlan(False, 'overlap = "never"')
    if device.type != "cpu":
        return OverlapPlan(True, f"{device.type} streams run beside each other")
    if choice == "auto" and threads == 1:
        return OverlapPlan(False, "one thread does one thing at a time")
    produced, consumed = work()

    def ahead(share: int) -> float:
        rest = max(1, threads - share)
        return max(produced / share**SCALING, consumed / rest**SCALING)

    share = min(range(1, max(2, threads)), key=ahead)
    gain = (produced + consumed) / threads**SCALING / max(ahead(share), 1e-12)
    found = (
        f"synthesis is {produced / max(produced + consumed, 1e-12):.0%} of a step's operations: with {share} of "
        f"{threads} threads ahead a step is predicted to be {gain:.2f} times as fast"
    )
    if choice == "auto" and gain < LEAST_GAIN:
        return OverlapPlan(False, found)
    return OverlapPlan(True, found, share)


def count_operations(work: Callable[[], Any]) -> int:
    """Operations of the convolutions and matrix products that work() runs, two a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def draws_from_torch(work: Callable[[], Any], device: torch.device) -> bool:
    """Whether work() draws from torch's own random numbers, which then depend on what else runs when."""

    def states() -> list[torch.Tensor]:
        found = [torch.get_rng_state()]
        if device.type != "cpu":
            found.append(torch.get_device_module(device).get_rng_state(device))
        return found

    before = states()
    work()
    return not all(torch.equal(a, b) for a, b in zip(before, states(), strict=True))
