"""A stage's batches, made when a step needs them or ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ptgm_fast.engine import CapturedStep, Ring
from ptgm_fast.errors import UserError
from ptgm_fast.spans import no_spans

if TYPE_CHECKING:
    from ptgm_fast.training.stage import Stage


def check_capture(capture: bool, device: torch.device) -> None:
    """Raises UserError where a CUDA graph is asked for and there is no CUDA."""
    if capture and device.type != "cuda":
        raise UserError(
            f"engine.capture = true replays a CUDA graph, and the device is {str(device)!r}; leave it out, or set device"
        )


def batch_maker(stage: Stage, *, capture: bool) -> Callable[[int], Any]:
    """make_batch(step): the batch of a step, by `Stage.make` or by a replay of it; raises as `check_capture`."""
    check_capture(capture, stage.device)
    if not capture:

        def make(step: int) -> Any:
            # A thread has a grad mode of its own, and its default is to record.
            with torch.no_grad():
                return stage.make(stage.context.spans, *stage.batch_inputs(step))

        return make
    # Marks of a span inside of the graph would be captured with it.
    captured: CapturedStep[Any] = CapturedStep(partial(stage.make, no_spans), stage.device)

    def replay(step: int) -> Any:
        inputs = stage.batch_inputs(step)
        with torch.no_grad(), stage.context.spans("generator"):
            return captured(*inputs)

    return replay


def ring_of(stage: Stage, first: int) -> Ring[Any]:
    """The batches of the steps from `first` on."""
    context = stage.context
    return stage.overlap.ring(
        stage.make_batch,
        stage.device,
        start=first,
        stop=stage.options.steps,
        depth=stage.engine.depth,
        describe=lambda step: f"the batch of step {step + 1} of stage {stage.name!r}",
        spans=context.spans,
        counter=context.counter,
    )
