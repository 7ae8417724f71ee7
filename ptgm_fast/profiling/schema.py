"""The schema of `profile.json`, and a reader for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ptgm_fast.errors import UserError
from ptgm_fast.records import Part, read_record

FORMAT: Literal["ptgm-fast profile"] = "ptgm-fast profile"
VERSION: Literal[2] = 2
FILE = "profile.json"
AGAIN = "Run it again with --profile (in a new --out folder), or remove the file"

MAIN = "main"
WAIT = "ring wait"
DEPTH = "ring depth"
SYNTHESIZED = "images synthesized"
SERVED = "images served"


class SpanTotals(Part):
    """Totals of all spans with one path in one track. seconds: on the device's clock if `on_device`, else the host's."""

    lane: str = Field(
        description='"main" for the trainer; the thread\'s name for anything that runs alongside it'
    )
    path: tuple[str, ...] = Field(description="names, starting from the stage's direct child")
    count: int = Field(ge=0)
    seconds: float = Field(ge=0)
    host_seconds: float = Field(ge=0)
    on_device: bool
    steady_count: int = Field(ge=0)
    steady_seconds: float = Field(ge=0)


class Steady(Part):
    """The steps after warm-up and compiling."""

    first_step: int = Field(ge=1, description="counted from 1 over the steps that this process ran")
    steps: int = Field(ge=0)
    seconds: float = Field(ge=0)
    median_step_seconds: float = Field(ge=0)
    p95_step_seconds: float = Field(ge=0)
    settled: bool = Field(description="false: step times still varied after 50 steps")


class Overlap(Part):
    """How far producer and consumer overlap, in the steady state if there is one, else in the whole stage."""

    producer_seconds: float = Field(ge=0, description="the producers' work, without waits")
    consumer_seconds: float = Field(ge=0, description="the trainer's work, without waits")
    consumer_wait_seconds: float = Field(ge=0)
    producer_wait_seconds: float = Field(ge=0)
    hideable_seconds: float = Field(ge=0, description="min(producer, consumer)")
    hidden_seconds: float = Field(
        ge=0, description="producer - consumer's wait, clamped to [0, hideable]"
    )
    efficiency: float | None = Field(
        description="hidden / hideable; null if nothing could be hidden"
    )


class CounterTotals(Part):
    name: str
    count: int
    mean: float
    greatest: float
    last: float


class StageProfile(Part):
    """One stage: a top-level span."""

    name: str
    seconds: float = Field(ge=0)
    steps: int = Field(ge=0)
    steady: Steady | None = Field(description="null: too few steps to separate it from warm-up")
    images_trained: int | None = None
    images_synthesized: int | None = None
    images_served: int | None = None
    reuse: float | None = Field(None, description="how often each image of the pool was used")
    pool_bytes: int | None = Field(None, description="size of the pool; 0: every image was fresh")
    seconds_saved: float | None = Field(
        None, description="extra seconds that as many fresh images would have taken"
    )
    joules_saved: float | None = Field(
        None, description="seconds_saved at the GPU's mean power over the run"
    )
    spans: tuple[SpanTotals, ...]
    counters: tuple[CounterTotals, ...] = ()
    overlap: Overlap | None = Field(description="null: nothing ran alongside the trainer")
    overlap_reason: str | None = Field(None, description="why synthesis ran ahead, or did not")
    precision: str | None = Field(None, description="of the training forward")
    compile_reason: str | None = Field(None, description="why the forward was compiled, or was not")
    compile_seconds: float | None = Field(None, ge=0, description="0: not compiled")

    def phases(self, *, steady: bool = False) -> dict[str, float]:
        """Seconds of the stage's direct child spans in the trainer, longest first; ``other`` is the time outside them.

        steady: only the steady state, if the stage has one.
        """
        steady = steady and self.steady is not None
        whole = self.steady.seconds if steady and self.steady else self.seconds
        found = {
            span.path[0]: span.steady_seconds if steady else span.seconds
            for span in self.spans
            if span.lane == MAIN and len(span.path) == 1
        }
        found["other"] = max(0.0, whole - sum(found.values()))
        return dict(sorted(found.items(), key=lambda item: -item[1]))


class Gauge(Part):
    """One sampled quantity."""

    name: str
    unit: str
    mean: float
    greatest: float


class Hardware(Part):
    """Hardware counters over the run; `notes` says what could not be read, and why."""

    processor: str
    cores: int
    samples: int
    seconds_between_samples: float
    gauges: tuple[Gauge, ...]
    peak_rss_bytes: int = Field(description="peak RSS of the process since it started")
    peak_gpu_bytes: int | None = Field(description="peak memory allocated by torch's allocator")
    gpu_joules: float | None = Field(
        description="energy of the whole GPU, from its counter or its sampled power"
    )
    joules_per_image: float | None = Field(description="gpu_joules per trained image")
    notes: tuple[str, ...] = ()


class Profile(Part):
    """Where a run's time went. Times are seconds."""

    format: Literal["ptgm-fast profile"] = FORMAT
    version: Literal[2] = VERSION
    complete: bool = Field(description="false: the run was stopped or failed before its end")
    device: str
    num_threads: int
    versions: dict[str, str]
    seconds: float = Field(ge=0)
    stages: tuple[StageProfile, ...]
    hardware: Hardware
    trace_events: int = Field(ge=0)
    trace_events_dropped: int = Field(ge=0)
    bottleneck: str = Field(
        description="one sentence: what limits the run, and the option that affects it"
    )


def read_profile(folder: Path) -> Profile:
    """Read the profile of a run folder. Raises UserError if it is missing, damaged, or of another version."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} has no {FILE}: the run was not profiled. Profile one with: ptgm-fast train --profile"
        )
    return read_record(path, Profile, what="profile", again=AGAIN)
