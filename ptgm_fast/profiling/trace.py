"""The trace: spans as slices and counters as curves, as JSON for chrome://tracing and Perfetto.

The format is Google's "Trace Event Format": complete events (X), counters (C), instants (i), metadata (M).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptgm_fast.models.weights import write_atomically
from ptgm_fast.profiling.hardware import Sample
from ptgm_fast.profiling.spans import CounterValue, SpanRecorder, Track

FILE = "trace.json"
HOST, DEVICE = 1, 2


def track_name(track: Track, recorder: SpanRecorder) -> str:
    """The name of a track: the trainer is the consumer, every other track a producer."""
    return "consumer (main thread)" if track is recorder.main else f"producer ({track.name})"


def trace_events(recorder: SpanRecorder, samples: Iterable[Sample] = ()) -> list[dict[str, Any]]:
    """Everything recorded, as trace events; times in microseconds since the recorder began."""
    tracks = recorder.tracks()
    events = [_event("M", HOST, 0, "process_name", args={"name": "host"})]
    if any(track.device_events for track in tracks):
        events.append(_event("M", DEVICE, 0, "process_name", args={"name": "device"}))
    for number, track in enumerate(tracks, start=1):
        name = {"name": track_name(track, recorder)}
        for process, spans in ((HOST, track.events), (DEVICE, track.device_events)):
            if spans:
                events.append(_event("M", process, number, "thread_name", args=name))
            for path, start, end in spans:
                times = {"ts": start / 1e3, "dur": (end - start) / 1e3}
                events.append(_event("X", process, number, path[-1], cat=path[0], **times))
    for stage, time, step in recorder.marks:
        name_of_step = f"{stage} step {int(step)}"
        events.append(_event("i", HOST, 1, name_of_step, s="t", cat="step", ts=time / 1e3))
    counters = [*recorder.counters]
    for sample in samples:
        time = sample.time - recorder.began
        counters += [CounterValue(what, time, value) for what, value in sample.values.items()]
    for counter, time, value in counters:
        events.append(_event("C", HOST, 0, counter, ts=time / 1e3, args={counter: value}))
    return events


def _event(phase: str, process: int, thread: int, name: str, **more: Any) -> dict[str, Any]:
    return {"ph": phase, "pid": process, "tid": thread, "name": name, **more}


def write_trace(events: list[dict[str, Any]], path: Path, dropped: int) -> None:
    """Write the trace atomically: a viewer never sees a partial file."""
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    other = json.dumps({"dropped_spans": dropped})
    text = f'{{"displayTimeUnit":"ms","otherData":{other},"traceEvents":[\n{lines}\n]}}\n'
    write_atomically(path, text.encode())
