"""A few steps of a trace: what each thread did when, and the ring's depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptgm_fast.profiling import Profile
from ptgm_fast.profiling.schema import DEPTH, WAIT
from ptgm_fast.runs.figures import WIDTH
from ptgm_fast.runs.plots import FAINT, INK, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 4
Events = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Window:
    """A window of a stage's steps; times in microseconds."""

    stage: str
    first_step: int
    start: float
    end: float


def find_window(profile: Profile, events: Events) -> Window | None:
    """A few steps from the middle of what the trace holds of the longest stage; None if it holds fewer than two steps."""
    stages = [stage for stage in profile.stages if stage.steps]
    if not stages:
        return None
    stage = max(stages, key=lambda s: s.seconds)
    marks = sorted(
        (event["ts"], event["name"])
        for event in events
        if event["ph"] == "i" and event["name"].startswith(f"{stage.name} step ")
    )
    kept = [event["ts"] for event in events if event["ph"] == "X"]
    # When the trace is full, marks are kept longer than spans.
    marks = [mark for mark in marks if kept and mark[0] >= min(kept)]
    if len(marks) < 2:
        return None
    first = max(0, (len(marks) - 1 - STEPS) // 2)
    last = min(len(marks) - 1, first + STEPS)
    number = int(marks[first][1].rsplit(" ", 1)[1]) + 1
    return Window(stage.name, number, marks[first][0], marks[last][0])


def tracks(events: Events) -> dict[tuple[int, int], str]:
    """Names of the trace's tracks by (process, thread), the consumer first."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    named = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event.get("name") == "thread_name"
    }
    several = len(processes) > 1
    return {
        key: f"{processes.get(key[0], '')}: {name}" if several else name
        for key, name in sorted(named.items())
    }


def timeline(profile: Profile, events: Events) -> Figure | None:
    """The window's spans, one row per track; None if the trace holds fewer than two steps of a stage."""
    window = find_window(profile, events)
    if window is None:
        return None
    rows = tracks(events)
    # By name and track: start and duration of each span, in milliseconds from the start of the window.
    bars: dict[str, dict[tuple[int, int], list[tuple[float, float]]]] = {}
    for event in events:
        if event["ph"] == "X" and event["name"] != event["cat"]:
            start = max(event["ts"], window.start)
            length = min(event["ts"] + event["dur"], window.end) - start
            if length > 0:
                of_track = bars.setdefault(event["name"], {}).setdefault(
                    (event["pid"], event["tid"]), []
                )
                of_track.append(((start - window.start) / 1e3, length / 1e3))
    seconds = {name: sum(b[1] for track in of.values() for b in track) for name, of in bars.items()}
    names = sorted((n for n in seconds if n != WAIT), key=lambda n: -seconds[n])[: len(SERIES)]
    colors = dict(zip(names, SERIES, strict=False)) | ({WAIT: FAINT} if WAIT in seconds else {})
    depth = [
        ((event["ts"] - window.start) / 1e3, event["args"][DEPTH])
        for event in events
        if event["ph"] == "C" and event["name"] == DEPTH
        if window.start <= event["ts"] <= window.end
    ]
    height = 1.3 + 0.5 * len(rows) + (0.9 if depth else 0.0) + 0.2 * ((len(names) + 2) // 3)
    label = (
        f"Timeline of {window.stage}, from step {window.first_step}, "
        f"{(window.end - window.start) / 1e3:.0f} ms: {', '.join(rows.values())}"
    )
    with drawing(WIDTH, height, label) as figure:
        ratios = [max(1, len(rows)), 1] if depth else [1]
        panels = figure.subplots(len(ratios), squeeze=False, sharex=True, height_ratios=ratios)[
            :, 0
        ]
        axis = panels[0]
        for name, color in colors.items():
            axis.plot([], [], "s", color=color, label=name)
            for row, key in enumerate(rows):
                axis.broken_barh(
                    bars[name].get(key, []), (row - 0.36, 0.72), facecolors=color, lw=0
                )
        axis.set_yticks(range(len(rows)), [name.replace(" (", "\n(") for name in rows.values()])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(visible=False)
        if depth:
            panels[1].step(*zip(*depth, strict=True), where="post", color=INK, lw=1.2)
            panels[1].set_ylabel(DEPTH)
            panels[1].set_ylim(bottom=0)
        panels[-1].set_xlabel(f"ms, {window.stage} from step {window.first_step}")
        figure.legend(*axis.get_legend_handles_labels(), ncols=3, loc="outside lower center")
    return figure
