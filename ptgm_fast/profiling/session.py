"""`profile`: record spans, counters, hardware and operators of a block; written to a folder when the block ends."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from ptgm_fast import __version__
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically
from ptgm_fast.profiling import schema, trace
from ptgm_fast.profiling.hardware import INTERVAL, HardwareSampler
from ptgm_fast.profiling.ops import OpsProfiler
from ptgm_fast.profiling.schema import Profile
from ptgm_fast.profiling.spans import MAX_EVENTS, Span, SpanRecorder
from ptgm_fast.profiling.summary import Facts, build_profile
from ptgm_fast.training.context import Context


class Profiler:
    """Profile a block and write ``profile.json`` and ``trace.json`` to `folder` when it ends, even after an exception::

        with profile("runs/mine") as p:
            for batch in loader:
                with p("forward"):
                    loss = network(batch)
                with p("backward"):
                    loss.backward()
                p.step()

    device: whose clock and counters are read in addition to the host's. stage: name of the stage that contains the block's
    spans; None if the block opens its stages itself. ops_steps: number of steps of each stage to run under torch.profiler.
    max_events: number of spans kept for the trace, the newest of each thread; totals always count all. sample_seconds:
    interval between hardware samples. after_a_step: create no folder and write nothing unless a step has ended. Raises
    UserError for a value out of range.

    result: the `Profile`, set when the block ends. Spans may be opened in any thread; call `step` only in the thread that
    entered the block.
    """

    result: Profile | None = None

    def __init__(
        self,
        folder: Path | str,
        *,
        device: torch.device | str = "cpu",
        stage: str | None = "loop",
        ops_steps: int = 0,
        max_events: int = MAX_EVENTS,
        sample_seconds: float = INTERVAL,
        versions: Mapping[str, str] | None = None,
        after_a_step: bool = False,
    ) -> None:
        for name, value, least in (
            ("ops_steps", ops_steps, 0),
            ("max_events", max_events, 1),
            ("sample_seconds", sample_seconds, 0.01),
        ):
            if value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{str(self.folder)!r} is a file; a profile needs a folder")
        self.ops = OpsProfiler(self.folder, ops_steps, device) if ops_steps else None
        self._device = torch.device(device)
        self._max_events = max_events
        self._interval = sample_seconds
        self._versions = dict(versions or {"ptgm_fast": __version__, "torch": torch.__version__})
        self._after_a_step = after_a_step
        self._facts: dict[str, Facts] = {}
        self._stage = stage
        self._stage_span: Span | None = None

    def __enter__(self) -> Self:
        if not self._after_a_step:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.recorder = SpanRecorder(self._device, max_events=self._max_events)
        self.sampler = HardwareSampler(self._device, interval=self._interval)
        self.sampler.start()
        if self._stage:
            self._stage_span = self.recorder(self._stage)
            self._stage_span.__enter__()
        return self

    def __call__(self, name: str) -> Span:
        """Open a span: ``with profiler("forward"): ...``. Spans can be nested."""
        return self.recorder(name)

    def counter(self, name: str, value: float) -> None:
        """Record a value that changes over time, for the trace.

        The profile also uses "ring depth", "images synthesized" and "images served".
        """
        self.recorder.counter(name, value)

    def step(self, stage: str | None = None, *, left: int | None = None) -> None:
        """Mark the end of a step. left: how many more steps follow, if known."""
        stage, recorder = stage or self.recorder.stage, self.recorder
        watched = self.ops is not None and self.ops.active
        recorder.step(stage, last=left == 0, measured=not watched)
        if self.ops:
            steady = recorder.steady
            recorder.begin_step(steady=False)
            with recorder("torch.profiler"):
                self.ops.after_step(stage, steady=recorder.steps[stage].steady, left=left)
            recorder.begin_step(steady=steady and not self.ops.active)

    def images(self, stage: str, **counts: int) -> None:
        """Record a stage's counts: ``images_trained``, ``images_synthesized``, ``images_served``."""
        self._add(stage, counts)

    def decided(self, stage: str, **decisions: str | float | None) -> None:
        """Record how a stage ran: ``overlap_reason``, ``precision``, ``compile_reason``, ``compile_seconds``.

        For a pool also ``reuse``, ``pool_bytes`` and ``seconds_saved``.
        """
        self._add(stage, decisions)

    def _add(self, stage: str, facts: Facts) -> None:
        self._facts[stage] = {**self._facts.get(stage, {}), **facts}

    def watch(self, context: Context) -> Context:
        """The same context with this profiler's spans, counters and steps."""
        told = context.on_step

        def on_step(stage: str, step: int, steps: int) -> None:
            self.step(stage, left=steps - step)
            told(stage, step, steps)

        return replace(context, spans=self.recorder, counter=self.counter, on_step=on_step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stage_span:
            self._stage_span.__exit__(kind, error, traceback)
        # An error raised by the block matters more than one while writing its profile.
        with suppress(*((OSError,) if error else ())):
            self._finish(complete=error is None)

    def _finish(self, *, complete: bool) -> None:
        self.recorder.resolve()
        trained = sum(int(facts.get("images_trained") or 0) for facts in self._facts.values())
        hardware = self.sampler.stop(trained or None)
        if self._after_a_step and not self.recorder.steps:
            # The run failed before its first step, for example by a config error: the folder may belong to another run.
            return
        if self.ops:
            self.ops.stop()
        self.result = build_profile(
            self.recorder,
            hardware,
            device=str(self._device),
            versions=self._versions,
            complete=complete,
            facts=self._facts,
        )
        events = trace.trace_events(self.recorder, self.sampler.samples)
        trace.write_trace(events, self.folder / trace.FILE, self.recorder.dropped)
        text = self.result.model_dump_json(indent=2) + "\n"
        write_atomically(self.folder / schema.FILE, text.encode())


# The public spelling: ``with profile(folder) as p``.
profile = Profiler
