"""Build a `Profile` from a recorder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ptgm_fast.profiling.bottleneck import bottleneck
from ptgm_fast.profiling.schema import (
    MAIN,
    SERVED,
    SYNTHESIZED,
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

# What only the stage itself knows, by field name of `StageProfile`.
Facts = Mapping[str, str | float | None]


def build_profile(
    recorder: SpanRecorder,
    hardware: Hardware,
    *,
    device: str,
    versions: Mapping[str, str],
    complete: bool,
    facts: Mapping[str, Facts],
) -> Profile:
    """Build the profile of a run. facts: for each stage, the images it trained on, synthesized and served, and decisions."""
    names = [path[0] for path in recorder.totals() if len(path) == 1]
    # A stage left by an exception counts as ended; a stage that is still open does not.
    seconds = recorder.now() / 1e9
    watts = hardware.gpu_joules / seconds if hardware.gpu_joules is not None else None
    stages = tuple(_stage(recorder, name, facts.get(name, {}), watts) for name in names)
    return Profile(
        complete=complete,
        device=device,
        num_threads=torch.get_num_threads(),
        versions=dict(versions),
        seconds=seconds,
        stages=stages,
        hardware=hardware,
        trace_events=sum(len(track.events) for track in recorder.tracks()),
        trace_events_dropped=recorder.dropped,
        bottleneck=bottleneck(stages),
    )


def _stage(recorder: SpanRecorder, name: str, facts: Facts, watts: float | None) -> StageProfile:
    spans = [
        SpanTotals(
            lane=track.name,
            path=path[1:],
            count=whole.count,
            seconds=whole.seconds,
            host_seconds=whole.host_ns / 1e9,
            on_device=whole.on_device,
            steady_count=steadily.count,
            steady_seconds=steadily.seconds,
        )
        for track in recorder.tracks()
        for path, (whole, steadily) in recorder.totals(track).items()
        if path[0] == name and len(path) > 1
    ]
    seconds = recorder.totals()[(name,)][0].seconds
    steps = recorder.steps.get(name, StepTimes())
    steady = _steady(steps)
    counters = tuple(
        CounterTotals(name=counter, count=n, mean=total / n, greatest=greatest, last=last)
        for (stage, counter), (n, total, greatest, last) in recorder.counter_totals.items()
        if stage == name
    )
    known: dict[str, Any] = dict(facts)
    counted = {SYNTHESIZED: "images_synthesized", SERVED: "images_served"}
    known |= {counted[c.name]: int(c.last) for c in counters if c.name in counted}
    if "images_served" not in known and "images_synthesized" in known:
        # Without a ring, every image is trained on right after it is made.
        known["images_served"] = known["images_synthesized"]
    saved = known.get("seconds_saved")
    if saved is not None and watts is not None:
        known["joules_saved"] = saved * watts
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
    """How much of the producers' work was hidden behind the trainer's.

    Let P be the producers' work, W the trainer's wait for them, and C the rest of the trainer's time. Run one after the
    other, they would take P + C; overlapped, they take C + W. So P - W is hidden, out of a possible min(P, C).
    """
    if all(span.lane == MAIN for span in spans):
        return None

    def add(*, main: bool, wait: bool, nested: bool | None = None) -> float:
        """Seconds of one side's waits, or of its work; nested: only spans inside another span (True) or outermost ones (False)."""
        return sum(
            span.seconds if steady_seconds is None else span.steady_seconds
            for span in spans
            if (span.lane == MAIN) == main and (span.path[-1] == WAIT) == wait
            if nested is None or (len(span.path) > 1) == nested
        )

    wait = add(main=True, wait=True)
    # A wait inside a producer's span is not work.
    work = add(main=False, wait=False, nested=False) - add(main=False, wait=True, nested=True)
    produced = max(0.0, work)
    consumed = max(0.0, (seconds if steady_seconds is None else steady_seconds) - wait)
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
