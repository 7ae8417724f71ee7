"""The trace: spans as slices, counters as curves, in the JSON that chrome://tracing and Perfetto open.

The format is Google's "Trace Event Format": complete events (X), counters (C), instants (i), metadata (M).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptgm_fast.models.weights import write_atomically
from ptgm_fast.profiling.hardware import Sample
from ptgm_fast.profiling.spans import Lane, SpanRecorder

FILE = "trace.json"
HOST, DEVICE = 1, 2


def lane_name(lane: Lane, recorder: SpanRecorder) -> str:
    """The trainer's lane is the consumer of whatever else records spans."""
    return "consumer (main thread)" if lane is recorder.main else f"producer ({lane.name})"


def trace_events(recorder: SpanRecorder, samples: Iterable[Sample] = ()) -> list[dict[str, Any]]:
    """All that is kept, as trace events; times in microseconds since the recorder began."""
    events: list[dict[str, Any]] = [_named("process_name", HOST, 0, "host")]
    if any(lane.device_events for lane in recorder.lanes()):
        events.append(_named("process_name", DEVICE, 0, "device"))
    for number, lane in enumerate(recorder.lanes(), start=1):
        for process, spans in ((HOST, lane.events), (DEVICE, lane.device_events)):
            if not spans:
                continue
            events.append(_named("thread_name", process, number, lane_name(lane, recorder)))
            events += [
                {
                    "ph": "X",
                    "pid": process,
                    "tid": number,
                    "name": span.path[-1],
                    "cat": span.path[0],
                    "ts": span.start / 1e3,
                    "dur": (span.end - span.start) / 1e3,
                }
                for span in spans
            ]
    for mark in recorder.marks:
        name = f"{mark.name} step {int(mark.value)}"
        events.append(
            {
                "ph": "i",
                "pid": HOST,
                "tid": 1,
                "s": "t",
                "name": name,
                "cat": "step",
                "ts": mark.time / 1e3,
            }
        )
    for counter in recorder.counters:
        events.append(_counter(counter.name, counter.time, counter.value))
    for sample in samples:
        for name, value in sample.values.items():
            events.append(_counter(name, sample.time - recorder.began, value))
    return events


def _named(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": what, "args": {"name": name}}


def _counter(name: str, time_ns: int, value: float) -> dict[str, Any]:
    return {
        "ph": "C",
        "pid": HOST,
        "tid": 0,
        "name": name,
        "ts": time_ns / 1e3,
        "args": {name: value},
    }


def write_trace(events: list[dict[str, Any]], path: Path, dropped: int) -> None:
    """Write whole: a viewer never sees half a trace."""
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    other = json.dumps({"dropped_spans": dropped})
    text = f'{{"displayTimeUnit":"ms","otherData":{other},"traceEvents":[\n{lines}\n]}}\n'
    write_atomically(path, text.encode())
