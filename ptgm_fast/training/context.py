"""What a stage is handed by its caller: spans to time its phases, a place for metrics, a wish to stop, the processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ptgm_fast.spans import Counter, Spans, no_counter, no_spans
from ptgm_fast.training.distributed import ProcessGroup


def _ignore(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
    return None


@dataclass
class Context:
    """spans: see `Spans`. counter(name, value) tells a quantity that changes over time, such as a ring's depth, from any
    thread. on_metrics(stage, step, steps, metrics) is called every `log_every` steps and after
    each validation; on_step(stage, step, steps) after each step. stop() is asked after each step: when true,
    the stage saves a checkpoint and raises `Interrupted`; one process's wish is all processes'. on_notice(message)
    is told what the user should know though the run goes on. on_images(done, total) is told how many images of a set are
    decoded. group: the processes of the run; only its first one
    calls on_metrics and on_step."""

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
