"""A few steps of a trace: which thread did what when, and the ring's depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptgm_fast.profiling import Profile
from ptgm_fast.profiling.schema import DEPTH, WAIT
from ptgm_fast.runs.report.figures import FAINT, INK, SERIES, WIDTH, drawn, figure_for

STEPS = 4
Events = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Window:
    """Times in microseconds."""

    stage: str
    first_step: int
    start: float
    end: float


def find_window(profile: Profile, events: Events) -> Window | None:
    """Some steps from the middle of the longest stage's last part that the trace holds; None without two steps."""
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
    # The marks outlast the spans when the trace is full.
    marks = [mark for mark in marks if kept and mark[0] >= min(kept)]
    if len(marks) < 2:
        return None
    first = max(0, (len(marks) - 1 - STEPS) // 2)
    last = min(len(marks) - 1, first + STEPS)
    number = int(marks[first][1].rsplit(" ", 1)[1]) + 1
    return Window(stage.name, number, marks[first][0], marks[last][0])


def lanes(events: Events) -> dict[tuple[int, int], str]:
    """Names of the trace's lanes by (process, thread), the consumer's first."""
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


def timeline(profile: Profile, events: Events) -> str | None:
    """The window's spans, a row a lane; None when the trace holds no two steps of a stage."""
    window = find_window(profile, events)
    if window is None:
        return None
    rows = lanes(events)
    inside = [
        event
        for event in events
        if event["ph"] == "X"
        and event["name"] != event["cat"]
        and event["ts"] < window.end
        and event["ts"] + event["dur"] > window.start
    ]
    seconds: dict[str, float] = {}
    for event in inside:
        seconds[event["name"]] = seconds.get(event["name"], 0.0) + event["dur"]
    names = sorted((n for n in seconds if n != WAIT), key=lambda n: -seconds[n])[: len(SERIES)]
    depth = [(e["ts"], e["args"][DEPTH]) for e in events if e["ph"] == "C" and e["name"] == DEPTH]
    depth = [point for point in depth if window.start <= point[0] <= window.end]

    def draw(into: list[str]) -> None:
        height = 1.3 + 0.5 * len(rows) + (0.9 if depth else 0.0) + 0.2 * ((len(names) + 2) // 3)
        label = (
            f"Timeline of {window.stage}, from step {window.first_step}, "
            f"{(window.end - window.start) / 1e3:.0f} ms: {', '.join(rows.values())}"
        )
        with figure_for(WIDTH, height, into, label) as figure:
            panels = figure.subplots(
                2 if depth else 1,
                1,
                squeeze=False,
                sharex=True,
                height_ratios=[max(1, len(rows)), 1] if depth else None,
            )[:, 0]
            axis = panels[0]
            for row, key in enumerate(rows):
                for name in [*names, WAIT]:
                    bars = [
                        (
                            (max(e["ts"], window.start) - window.start) / 1e3,
                            (min(e["ts"] + e["dur"], window.end) - max(e["ts"], window.start))
                            / 1e3,
                        )
                        for e in inside
                        if (e["pid"], e["tid"]) == key and e["name"] == name
                    ]
                    colour = FAINT if name == WAIT else SERIES[names.index(name)]
                    axis.broken_barh(bars, (row - 0.36, 0.72), facecolors=colour, lw=0)
            for number, name in enumerate(names):
                axis.plot([], [], "s", color=SERIES[number], label=name)
            if WAIT in seconds:
                axis.plot([], [], "s", color=FAINT, label=WAIT)
            axis.set_yticks(range(len(rows)), [name.replace(" (", "\n(") for name in rows.values()])
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.grid(visible=False)
            if depth:
                times = [(time - window.start) / 1e3 for time, _ in depth]
                panels[1].step(
                    times, [value for _, value in depth], where="post", color=INK, lw=1.2
                )
                panels[1].set_ylabel(DEPTH)
                panels[1].set_ylim(bottom=0)
            panels[-1].set_xlabel(f"ms, {window.stage} from step {window.first_step}")
            figure.legend(*axis.get_legend_handles_labels(), ncols=3, loc="outside lower center")

    return drawn(draw)
