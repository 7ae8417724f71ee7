"""A stage's batches, made on demand or prefetched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ptgm_fast.engine import CapturedStep, Ring
from ptgm_fast.spans import Spans, no_spans
from ptgm_fast.training.context import Context
from ptgm_fast.training.stage import Stage


def prefetch(stage: Stage, first: int, context: Context) -> Ring[Any]:
    """The batches of the steps from `first` on, made as `Stage.overlap` says. The caller closes the ring."""
    capture = stage.engine.capture
    return stage.overlap.ring(
        replayed(stage, context.spans)
        if capture
        else partial(stage.make_batch, spans=context.spans),
        stage.device,
        start=first,
        stop=stage.options.steps,
        depth=stage.engine.depth,
        describe=lambda step: f"the batch of step {step + 1} of stage {stage.name!r}",
        spans=context.spans,
        counter=context.counter,
    )


def replayed(stage: Stage, spans: Spans = no_spans) -> Callable[[int], Any]:
    """`Stage.make_batch` as replays of a CUDA graph."""
    # Span markers inside the graph would be captured with it.
    captured: CapturedStep[Any] = CapturedStep(partial(stage.make, no_spans), stage.device)

    def replay(step: int) -> Any:
        inputs = stage.batch_inputs(step)
        with torch.no_grad(), spans("generator"):
            return captured(*inputs)

    return replay
