"""What a caller passes to a stage: spans that time its phases, callbacks for metrics and notices, a stop request, the processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ptgm_fast.spans import Counter, Spans, no_counter, no_spans
from ptgm_fast.training.distributed import ProcessGroup


def _ignore(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
    return None


@dataclass
class Context:
    """The callbacks and processes of a run, as its stages see them.

    spans: see `Spans`. counter(name, value) records a quantity that changes over time, such as a ring's depth; it is called
    from any thread. on_metrics(stage, step, steps, metrics) is called every `log_every` steps and after each validation,
    on_step(stage, step, steps) after each step. stop() is polled after each step: when it returns true on any process,
    the stage saves a checkpoint and raises `Interrupted` on all of them. on_notice(message) receives warnings that do not
    end the run. on_images(done, total) receives how many images of a set are decoded. group: the processes of the run; only
    the first one calls on_metrics and on_step.
    """

    spans: Spans = no_spans
    counter: Counter = no_counter
    on_metrics: Callable[[str, int, int, Mapping[str, float]], None] = _ignore
    on_step: Callable[[str, int, int], None] = field(default=lambda stage, step, steps: None)
    stop: Callable[[], bool] = field(default=lambda: False)
    on_notice: Callable[[str], None] = field(default=lambda message: None)
    on_images: Callable[[int, int], None] = field(default=lambda done, total: None)
    group: ProcessGroup = field(default_factory=ProcessGroup)


class Interrupted(Exception):
    """The user asked to stop; the last completed step is in the checkpoint."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(f"stopped in stage {stage!r} after step {step}")
        self.stage = stage
        self.step = step
