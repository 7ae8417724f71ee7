"""The condition for timing the eager loop: on the same batch, its step equals the stage's step.

Ours and the eager loop are compared in the layout that ours uses, channels-last. In that layout torch's batch norm sums
in float32, and an error of 1e-5 in its statistics changes single gradients by a percent, in any implementation. So a loop
in the default layout, or compiled, is compared with itself in float64, allowing twice the error of the same code in
channels-last and uncompiled, and its loss with ours. (On some processors the default layout's gradients change as much.)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from eager_loop import LOOPS, PseudoSemiSupervisedLoop, SourcePair
from torch import Tensor, nn

from ptgm_fast.models import TargetNetwork
from ptgm_fast.runs.task import Task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.sampling import conditioning_table

TOLERANCE = 1e-4

Batch = tuple[Tensor | None, ...]
# Loss, gradients and running statistics by name.
State = dict[str, Tensor]


def assert_same_step(task: Task, stage: str, pair: SourcePair) -> float:
    """The largest difference of loss, gradients and statistics after one step from the same network.

    In float32, whatever the task trains in: bfloat16 would hide a difference of a hundredth. Raises AssertionError above
    `TOLERANCE`; for the default layout or a compiled pair, above its rounding error.
    """
    task = replace(task, config=task.config.model_copy(update={"precision": "float32"}))
    ours, batch = our_step(task, stage)
    laid_out = eager_step(task, stage, SourcePair(task, channels_last=True), batch)
    worst = at_most(TOLERANCE, differences(laid_out, ours), stage)
    if pair.channels_last and not pair.compiled:
        return worst
    found = eager_step(task, stage, pair, batch)
    at_most(TOLERANCE, differences({"loss": found["loss"]}, {"loss": ours["loss"]}), stage)
    exact = eager_step(task, stage, SourcePair(task), batch, torch.float64)
    rounding = max(TOLERANCE, 2 * max(differences(laid_out, exact).values()))
    return at_most(rounding, differences(found, exact), f"{stage}, against float64")


def our_step(task: Task, stage: str) -> tuple[State, Batch]:
    """The stage's first step, and the batch it was computed on."""
    network = start(task)
    made = make_stage(stage, task, network)
    made.prepare()
    batch = made.make_batch(0)
    terms = made.losses(0, batch)
    if task.config.p_ssl.two_views and stage == "p-ssl":
        assert 0 < terms["mask_rate"] < 1, (
            "the loss on pseudo samples would be compared in part only"
        )
    terms["loss"].backward()
    # The arguments of the eager loop's loss, which calls the source classifier itself.
    given = {
        "pp": lambda: (batch.inputs, batch.labels),
        "supervised": lambda: (batch.views, batch.labels),
        "p-ssl": lambda: (batch.labelled.views, batch.labelled.labels, batch.weak, batch.strong),
    }[stage]
    return state(network, terms["loss"]), given()


def start(task: Task) -> TargetNetwork:
    """The task's fresh network, with a target head confident enough that some, but not all, pseudo samples count."""
    network = task.new_network().train()
    with torch.no_grad():
        network.heads["target"].weight *= 120
    return network


def eager_step(
    task: Task, stage: str, pair: SourcePair, batch: Batch, dtype: torch.dtype = torch.float32
) -> State:
    loop = LOOPS[stage](task, pair, start(task))
    pair.classifier.to(dtype)
    loop.network.to(dtype)
    loss = loop.loss(*(as_drawn(part, dtype) for part in batch))  # type: ignore[arg-type]
    loss.backward()
    return state(loop.network, loss)


def as_drawn(part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """In torch's default layout, as the eager loop draws its images; with one channel, `contiguous` would not convert it."""
    if part is None or not part.is_floating_point():
        return part
    return part.to(dtype).clone(memory_format=torch.contiguous_format)


def state(network: nn.Module, loss: Tensor) -> State:
    gradients = {
        f"gradient of {n}": p.grad for n, p in network.named_parameters() if p.grad is not None
    }
    statistics = {n: b for n, b in network.named_buffers() if b.is_floating_point()}
    found = {"loss": loss, **gradients, **statistics}
    return {name: value.detach().double().clone() for name, value in found.items()}


def differences(found: State, expected: State) -> dict[str, float]:
    """By name, the largest difference in a tensor relative to its largest entry."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return {
        name: ((found[name] - value).abs().max() / value.abs().max().clamp_min(1e-6)).item()
        for name, value in expected.items()
    }


def at_most(tolerance: float, found: dict[str, float], what: str) -> float:
    name = max(found, key=lambda name: found[name])
    assert found[name] <= tolerance, f"{what}: {name} differs by {found[name]:.1e}"
    return found[name]


def assert_same_images(task: Task, pair: SourcePair, num: int = 32) -> float:
    """The largest difference of generated images in [-1, 1], for labels and for target images.

    Ours: the rewritten generator and the table of conditions; theirs: both networks as loaded. Raises AssertionError above
    `TOLERANCE`.
    """
    source, data = task.source, task.data.train
    latents = source.latents(num, seed=task.config.seed, start=0)
    labels = torch.arange(num) % source.num_classes
    rows = torch.arange(num) % len(data)
    with torch.no_grad():
        theirs = pair.generator.generate(latents, labels)
    worst = (source.generate(latents, labels, "class") - theirs).abs().max().item()
    pssl = task.config.p_ssl
    table = conditioning_table(source, data.images, temperature=pssl.pcs_temperature)
    ours = source.generate(latents, *table.conditions(rows))
    loop = PseudoSemiSupervisedLoop(task, pair, task.new_network())
    theirs = loop.pseudo_images(latents, loop.images[rows])
    worst = max(worst, (ours - theirs).abs().max().item())
    assert worst <= TOLERANCE, f"images differ by {worst:.1e}"
    return worst
