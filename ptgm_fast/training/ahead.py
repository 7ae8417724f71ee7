"""A stage's batches, made when a step needs them or ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ptgm_fast.engine import CapturedStep, OverlapPlan, Ring, plan_overlap
from ptgm_fast.engine.overlap import count_operations, draws_from_torch
from ptgm_fast.engine.spans import no_spans
from ptgm_fast.errors import UserError

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


def plan_batches(stage: Stage, first: int) -> OverlapPlan:
    """Whether the stage's batches are made ahead, decided by its operations; see `plan_overlap`.

    What draws from torch's own random numbers would get other ones when it runs beside the training: it is not made
    ahead. Raises UserError if that was asked for.
    """

    @cache
    def watched() -> tuple[Any, int, bool]:
        """A batch, its operations, and whether it drew from torch; made once, since a large generator takes seconds."""
        made: list[Any] = []
        counted: list[int] = []

        def make() -> None:
            made.append(stage.make(no_spans, *stage.batch_inputs(first)))

        drew = draws_from_torch(lambda: counted.append(count_operations(make)), stage.device)
        return made[0], counted[0], drew

    def work() -> tuple[float, float]:
        batch, produced, _ = watched()
        image = next(t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.dim() == 4)[:1]
        return produced, training_operations(stage, image)

    with stage.context.spans("planning"), torch.random.fork_rng(), torch.no_grad():
        plan = plan_overlap(
            stage.engine.overlap, stage.device, threads=torch.get_num_threads(), work=work
        )
        if not plan.ahead or not watched()[2]:
            return plan
    if stage.engine.overlap == "always":
        raise UserError(
            'engine.overlap = "always" would change the numbers of this run: its generator or its source classifier draws '
            'from torch\'s own random numbers. Use "auto" or "never"'
        )
    return OverlapPlan(False, "synthesis draws from torch's own random numbers")


def training_operations(stage: Stage, image: Tensor) -> float:
    """Operations of this process's training of a step: three forwards' worth an image (forward, and the gradients of
    inputs and of weights), one for an image that is only predicted."""
    network = stage.network.network
    network.eval()
    forward = count_operations(lambda: network(image))
    network.train()
    return (
        forward * (3 * stage.images_per_step + stage.images_predicted_per_step) / stage.world.size
    )


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
