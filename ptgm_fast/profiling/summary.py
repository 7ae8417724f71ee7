"""From what a recorder holds to a `Profile`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ptgm_fast.profiling.bottleneck import bottleneck
from ptgm_fast.profiling.schema import (
    MAIN_LANE,
    SERVED,
    SYNTHESISED,
    WAIT,
    CounterTotals,
    Hardware,
    Overlap,
    Profile,
    SpanTotals,
    StageProfile,
    Steady,
)
from ptgm_fast.profiling.spans import SpanRecorder
from ptgm_fast.profiling.steady import StepTimes

# What only the stage itself knows, by the names of `StageProfile`.
Facts = Mapping[str, str | float]


def build_profile(
    recorder: SpanRecorder,
    hardware: Hardware,
    *,
    device: str,
    versions: Mapping[str, str],
    complete: bool,
    facts: Mapping[str, Facts],
) -> Profile:
    """facts: by stage, how many images it trained on, synthesised and served, and what was decided for it."""
    names = [path[0] for path in recorder.totals() if len(path) == 1]
    # A stage that was left by an exception has ended too; one that is still open has not.
    stages = tuple(_stage(recorder, name, facts.get(name, {})) for name in names)
    return Profile(
        complete=complete,
        device=device,
        num_threads=torch.get_num_threads(),
        versions=dict(versions),
        seconds=recorder.now() / 1e9,
        stages=stages,
        hardware=hardware,
        trace_events=sum(len(lane.events) for lane in recorder.lanes()),
        trace_events_dropped=recorder.dropped,
        bottleneck=bottleneck(stages),
    )


def _stage(recorder: SpanRecorder, name: str, facts: Facts) -> StageProfile:
    spans: list[SpanTotals] = []
    for lane in recorder.lanes():
        for path, (whole, steadily) in recorder.totals(lane).items():
            if path[0] != name or len(path) == 1:
                continue
            spans.append(
                SpanTotals(
                    lane=lane.name,
                    path=path[1:],
                    count=whole.count,
                    seconds=whole.seconds,
                    host_seconds=whole.host_ns / 1e9,
                    on_device=whole.on_device,
                    steady_count=steadily.count,
                    steady_seconds=steadily.seconds,
                )
            )
    seconds = recorder.totals()[(name,)][0].seconds
    steps = recorder.steps.get(name, StepTimes())
    steady = _steady(steps)
    counters = tuple(
        CounterTotals(name=counter, count=n, mean=total / n, greatest=greatest, last=last)
        for (stage, counter), (n, total, greatest, last) in recorder.counter_totals.items()
        if stage == name
    )
    known: dict[str, Any] = dict(facts)
    for counter in counters:
        if counter.name == SYNTHESISED:
            known["images_synthesised"] = int(counter.last)
        if counter.name == SERVED:
            known["images_served"] = int(counter.last)
    if "images_served" not in known and "images_synthesised" in known:
        # Without a ring every image that is made is trained on at once.
        known["images_served"] = known["images_synthesised"]
    return StageProfile(
        name=name,
        seconds=seconds,
        steps=steps.count,
        steady=steady,
        spans=tuple(spans),
        counters=counters,
        overlap=overlap(spans, steady.seconds if steady else None, seconds),
        **known,
    )


def _steady(steps: StepTimes) -> Steady | None:
    if steps.first_steady is None or not steps.steady_count:
        return None
    return Steady(
        first_step=steps.first_steady,
        steps=steps.steady_count,
        seconds=steps.steady_ns / 1e9,
        median_step_seconds=steps.quantile(0.5),
        p95_step_seconds=steps.quantile(0.95),
        settled=steps.settled,
    )


def overlap(
    spans: list[SpanTotals], steady_seconds: float | None, seconds: float
) -> Overlap | None:
    """How much of the producers' work went by while the trainer worked.

    With P the producers' work, W the trainer's wait for them and C the rest of its time, one after the other would take
    P + C and takes C + W. So P - W is hidden, of min(P, C) that could be.
    """
    if all(span.lane == MAIN_LANE for span in spans):
        return None
    steady = steady_seconds is not None

    def add(main: bool, wait: bool) -> float:
        return sum(
            span.steady_seconds if steady else span.seconds
            for span in spans
            if (span.lane == MAIN_LANE) == main
            and (span.path[-1] == WAIT if wait else len(span.path) == 1 and span.path[0] != WAIT)
        )

    whole = steady_seconds if steady_seconds is not None else seconds
    wait = add(main=True, wait=True)
    # A wait inside a producer's span is no work of its.
    nested = sum(
        span.steady_seconds if steady else span.seconds
        for span in spans
        if span.lane != MAIN_LANE and span.path[-1] == WAIT and len(span.path) > 1
    )
    produced = max(0.0, add(main=False, wait=False) - nested)
    consumed = max(0.0, whole - wait)
    hideable = min(produced, consumed)
    hidden = min(max(produced - wait, 0.0), hideable)
    return Overlap(
        producer_seconds=produced,
        consumer_seconds=consumed,
        consumer_wait_seconds=wait,
        producer_wait_seconds=add(main=False, wait=True),
        hideable_seconds=hideable,
        hidden_seconds=hidden,
        efficiency=hidden / hideable if hideable > 0 else None,
    )
