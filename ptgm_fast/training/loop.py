"""The training loop of a stage: steps, schedule, validation, checkpoints, clean stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptgm_fast.engine.runtime import before_producer
from ptgm_fast.errors import UserError
from ptgm_fast.training.checkpoint import CheckpointFile
from ptgm_fast.training.context import Context, Interrupted
from ptgm_fast.training.execution import CompileClock, deterministic
from ptgm_fast.training.optim import learning_rate, set_learning_rate
from ptgm_fast.training.prefetch import prefetch
from ptgm_fast.training.stage import Stage
from ptgm_fast.training.state import TrainingState


@dataclass(frozen=True)
class StageResult:
    """The result of training a stage.

    images_per_second: images through the target network's training forward, per second of `seconds`. best_step: the step
    whose weights were kept. precision: of the training forward. compiled, compile_reason: whether the forward was compiled
    and why; compile_seconds: how long that took since the last resume. overlap, overlap_reason: whether batches were
    prefetched and why. images_served: pseudo samples over all steps; reuse: how often each of their images was shown;
    pool_bytes: size of the pool they came from; seconds_saved: the extra time that as many fresh images would have taken,
    at the rate at which images were made here (None if none were).
    """

    stage: str
    steps: int
    seconds: float
    images_per_second: float
    images_synthesized: int
    best_step: int
    validation_accuracy: float | None
    precision: str = "float32"
    compiled: bool = False
    compile_reason: str = ""
    compile_seconds: float = 0.0
    overlap: bool = False
    overlap_reason: str = ""
    images_served: int = 0
    reuse: float = 1.0
    pool_bytes: int = 0
    seconds_saved: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "stage"}


def fit(
    stage: Stage,
    context: Context | None = None,
    *,
    checkpoint: CheckpointFile | None = None,
    resume: Mapping[str, Any] | None = None,
) -> StageResult:
    """Train the stage's network from step 0, or from the state `resume`, and leave the best weights in it.

    Without validation, the last weights stay. Raises UserError when the loss is not finite (the last good checkpoint stays)
    and Interrupted when the context requests a stop.
    """
    context = context or Context()
    options, group, spans = stage.options, stage.group, context.spans
    made_before = stage.pool.made if stage.pool else 0
    stage.prepare(spans)
    state = TrainingState(stage.network, options, teacher_decay=stage.teacher_decay)
    first = state.load(resume) if resume else 0
    if resume:
        stage.load_state(resume["of_stage"])
    clock = CompileClock(stage.device, stage.compilation.compiled)
    # The first step with a non-finite loss, kept on the device to avoid a synchronization per step.
    bad_step = torch.full((), -1, dtype=torch.int64, device=stage.device)
    stage.network.train()
    with (
        torch.random.fork_rng(),
        deterministic(stage.deterministic, stage.device),
        before_producer(stage.device if stage.overlap.ahead else torch.device("cpu")),
        prefetch(stage, first, context) as batches,
    ):
        for step in range(first, options.steps):
            # Dropout and the like draw from torch's generator, so it is seeded by the step.
            torch.manual_seed(stage.dropout_seed(step))
            set_learning_rate(state.optimizer, learning_rate(options, step, options.steps))
            batch = next(batches)
            _count(stage, made_before, done=step + 1 - first, context=context)
            with clock.step():
                terms = stage.losses(step, batch, state.teacher, spans)
                descend(stage, state, terms["loss"], context)
            finite = torch.isfinite(terms["loss"].detach())
            bad_step = torch.where((bad_step < 0) & ~finite, step, bad_step)

            done = step + 1
            last = done == options.steps
            every = options.checkpoint_every
            save = not last and every > 0 and done % every == 0
            log = last or done % options.log_every == 0
            if group.is_first:
                context.on_step(stage.name, done, options.steps)
            stop = group.any(context.stop())
            if log or save or stop:
                _check_finite(stage, int(bad_step), done, checkpoint)
            if log:
                _log(stage, state, done, terms, context)
            if stage.validate_every and done % stage.validate_every == 0:
                _validate(stage, state, done, context)
            if checkpoint and (save or stop):
                with spans("checkpoint"):
                    own = {"of_stage": stage.state()}
                    checkpoint.save(state.as_dict(stage.name, done) | own)
            if stop and not last:
                if checkpoint:
                    checkpoint.wait()
                # No process may exit before the first one has saved: that would look like a failure.
                group.barrier()
                raise Interrupted(stage.name, done)
    if state.validated_at != options.steps:
        _validate(stage, state, options.steps, context)
    seconds = state.seconds()
    group.check_equal(stage.network.state_dict(), "weights")
    accuracy, best_step = state.keep_best(options.steps)
    return StageResult(
        stage=stage.name,
        steps=options.steps,
        seconds=seconds,
        images_per_second=options.steps * stage.images_per_step / max(seconds, 1e-9),
        images_synthesized=stage.images_synthesized,
        best_step=best_step,
        validation_accuracy=accuracy,
        precision=stage.training_precision,
        compiled=stage.compilation.compiled,
        compile_reason=stage.compilation.reason,
        compile_seconds=clock.seconds,
        overlap=stage.overlap.ahead,
        overlap_reason=stage.overlap.reason,
        **_reuse(stage),
    )


def _reuse(stage: Stage) -> dict[str, Any]:
    """The fields of `StageResult` about pseudo images."""
    served, pool = stage.images_served, stage.pool
    if pool is None:
        return {"images_served": served}
    each = pool.seconds_per_image
    return {
        "images_served": served,
        "reuse": served / min(served, len(pool)),
        "pool_bytes": pool.num_bytes,
        "seconds_saved": None if each is None else (served - stage.images_synthesized) * each,
    }


def _count(stage: Stage, made_before: int, *, done: int, context: Context) -> None:
    """Report to the profile how many images were made and served; without a pool, it knows."""
    if stage.pool is not None:
        context.counter("images synthesized", stage.pool.made - made_before)
        served = stage.group.share(stage.pseudo_images_per_step)[1]
        context.counter("images served", done * served)


def descend(stage: Stage, state: TrainingState, loss: Tensor, context: Context) -> None:
    """Take one optimizer step on the loss of all processes, and update the moving averages."""
    spans, group, clip = context.spans, stage.group, stage.options.gradient_clip
    with spans("backward"):
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
    if group.size > 1:
        with spans("gradients of all"):
            group.sum_gradients(stage.network.parameters())
    with spans("optimizer"):
        if clip:
            torch.nn.utils.clip_grad_norm_(stage.network.parameters(), clip)
        state.optimizer.step()
        for average in state.averages.values():
            average.update(stage.network)


def _check_finite(
    stage: Stage, bad_step: int, done: int, checkpoint: CheckpointFile | None
) -> None:
    """Raises UserError if the loss was not finite on any process. bad_step: this process's first such step, or -1."""
    bad_step = stage.group.least(bad_step if bad_step >= 0 else done)
    if bad_step == done:
        return
    kept = (
        f"The last good checkpoint is {str(checkpoint.path)!r}."
        if checkpoint and checkpoint.exists()
        else "No checkpoint had been written yet."
    )
    options = stage.options
    raise UserError(
        f"the loss of stage {stage.name!r} was not finite at step {bad_step + 1} of {options.steps}. {kept}\n"
        f"Lower its learning rate (now {options.lr:g}), set gradient_clip = 1.0, or check the data for constant images"
    )


def _log(
    stage: Stage, state: TrainingState, done: int, terms: Mapping[str, Tensor], context: Context
) -> None:
    whole = stage.group.sum(torch.stack([value.detach().double() for value in terms.values()]))
    if not stage.group.is_first:
        return
    metrics = dict(zip(terms, whole.tolist(), strict=True))
    metrics["lr"] = state.optimizer.param_groups[0]["lr"]
    metrics["images_per_second"] = done * stage.images_per_step / state.seconds()
    context.on_metrics(stage.name, done, stage.options.steps, metrics)


def _validate(stage: Stage, state: TrainingState, done: int, context: Context) -> None:
    with context.spans("evaluation"):
        accuracy = stage.group.from_first(lambda: stage.validate(state.evaluated))
    state.validated(done, accuracy)
    if accuracy is not None and stage.group.is_first:
        metrics = {"validation_accuracy": accuracy}
        context.on_metrics(stage.name, done, stage.options.steps, metrics)
