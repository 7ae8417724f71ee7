"""The loop every stage runs: steps, schedule, average, validation, checkpoints, a clean stop."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptgm_fast.engine import plan_overlap
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.sampling import derive_seed
from ptgm_fast.spans import Spans
from ptgm_fast.training.ahead import batch_maker, ring_of
from ptgm_fast.training.checkpoint import CheckpointFile
from ptgm_fast.training.context import Context, Interrupted
from ptgm_fast.training.distributed import check_share
from ptgm_fast.training.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    learning_rate,
    set_learning_rate,
)
from ptgm_fast.training.options import StageOptions
from ptgm_fast.training.wrap import CompileClock, Execution, decide, wrap


@dataclass(frozen=True)
class StageResult:
    """What a stage did. images_trained counts images through the target network's training forward;
    images_per_second is that count over `seconds`. best_step is the step of the weights that were kept. compiled,
    compile_reason: whether the forward was compiled and why; compile_seconds: what that took since the last resume. overlap, overlap_reason:
    whether the batches were made ahead and why."""

    stage: str
    steps: int
    seconds: float
    images_per_second: float
    images_synthesised: int
    best_step: int
    validation_accuracy: float | None
    compiled: bool = False
    compile_reason: str = ""
    compile_seconds: float = 0.0
    overlap: bool = False
    overlap_reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "stage"}


class Stage(ABC):
    """A stage trains `network` in place. Subclasses say what a step's losses are and how to validate.

    Everything random is addressed by (seed, stage, step), so a checkpoint holds no generator state and a
    resumed stage continues bit for bit. The samples of a step are those of the whole batch, whatever the number of
    processes: each takes its share (`samples`), and its means count by the size of it (`of_all`).
    """

    name: str
    images_per_step: int
    images_synthesised_per_step: int
    # Images a step that the target network predicts without training on them.
    images_predicted_per_step: int = 0
    validate_every: int = 0

    def __init__(
        self,
        network: TargetNetwork,
        options: StageOptions,
        *,
        seed: int,
        context: Context,
        execution: Execution | None = None,
    ) -> None:
        """Raises UserError when there are more processes than images in a batch, or as `wrap.decide`."""
        self.world = context.world
        self.network = network
        self.options = options
        self.seed = seed
        self.context = context
        self.device = next(network.parameters()).device
        check_share(options.batch_size, f"batch_size of stage {self.name!r}", self.world)
        execution = execution or Execution()
        self.precision = execution.precision
        self.compile = decide(
            execution.compile, network, self.device, steps=options.steps, world=self.world
        )
        self.engine = execution.engine
        self.make_batch = batch_maker(self, capture=execution.engine.capture)
        self.features = wrap(
            network,
            device=self.device,
            precision=execution.precision,
            compiled=self.compile.compiled,
            world=self.world,
        )

    def samples(self, step: int, batch: int) -> tuple[int, int]:
        """Which samples of a step are this process's: the first one's number in the run, and how many."""
        offset, number = self.world.share(batch)
        return step * batch + offset, number

    def of_all(self, mean: Tensor, batch: int) -> Tensor:
        """This process's part of the mean over a whole batch: the parts of all processes add up to it."""
        number = self.world.share(batch)[1]
        return mean if number == batch else mean * (number / batch)

    @abstractmethod
    def batch_inputs(self, step: int) -> tuple[int | Tensor, ...]:
        """What tells a step's batch from another step's, on the stage's device: first samples, orders."""

    @abstractmethod
    def make(self, spans: Spans, *inputs: Any) -> Any:
        """A step's batch of `batch_inputs`: all of the step that depends on no weights that are trained.

        So it can be made ahead, in another thread or on another stream. Nothing in it may depend on anything else than
        the inputs, nor read a number on the host: it may be captured as a CUDA graph, whose inputs are all tensors.
        """

    @abstractmethod
    def losses(self, step: int, batch: Any) -> dict[str, Tensor]:
        """The loss terms of a step as scalars; the entry ``loss`` is minimised, the others are only logged.

        batch: what `make` made for the step. Each is this process's part (`of_all`): the processes' terms add up to those of the whole batch.
        """

    def validate(self, network: TargetNetwork) -> float | None:
        """Validation accuracy by which the best weights are chosen, or None: the last weights are kept."""
        return None

    def seed_of(self, purpose: str) -> int:
        return derive_seed(self.seed, f"{self.name}/{purpose}")

    def run(
        self, checkpoint: CheckpointFile | None = None, resume: Mapping[str, Any] | None = None
    ) -> StageResult:
        """Train from step 0, or from the state `resume`; leaves the best (else the last) weights in `network`.

        Raises UserError when the loss is not finite (the last good checkpoint stays) and Interrupted when
        the context asks to stop.
        """
        options, spans = self.options, self.context.spans
        self.optimizer = build_optimizer(self.network, options)
        self.ema = (
            ExponentialMovingAverage(self.network, options.ema_decay) if options.ema_decay else None
        )
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        self._validated_at = -1
        self._seconds = 0.0
        first = self._restore(resume) if resume else 0
        last_log: dict[str, Tensor] = {}
        # The step at which the loss first was not finite, kept on the device: no synchronisation a step.
        bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._clock = CompileClock(self.device, self.compile.compiled)
        started = time.perf_counter()
        with self.context.spans("planning"):
            self.overlap = plan_overlap(self.engine.overlap, self.source)
        self.network.train()
        with torch.random.fork_rng(), ring_of(self, first) as batches:
            for step in range(first, options.steps):
                # Dropout and the like draw from torch's generator: addressed by the step as all else is.
                torch.manual_seed(self._dropout_seed(step))
                set_learning_rate(self.optimizer, learning_rate(options, step, options.steps))
                batch = next(batches)
                began = time.perf_counter()
                terms = self.losses(step, batch)
                loss = terms["loss"]
                self._descend(loss)
                if self._clock.runs:
                    self._clock.wait()
                    self._clock.add(time.perf_counter() - began)
                finite = torch.isfinite(loss.detach())
                bad_step = torch.where((bad_step < 0) & ~finite, step, bad_step)
                last_log = {k: v.detach() for k, v in terms.items()}
                done = step + 1
                if self.world.is_first:
                    self.context.on_step(self.name, done, options.steps)
                save = (
                    done < options.steps
                    and options.checkpoint_every
                    and done % options.checkpoint_every == 0
                )
                stop = self.world.any(self.context.stop())
                if done % options.log_every == 0 or done == options.steps or save or stop:
                    self._check_finite(int(bad_step), done, checkpoint)
                    if done % options.log_every == 0 or done == options.steps:
                        self._log(done, last_log, self._seconds + time.perf_counter() - started)
                if self.validate_every and done % self.validate_every == 0:
                    self._validate(done)
                if checkpoint and (save or stop):
                    with spans("checkpoint"):
                        checkpoint.save(
                            self._state(done, self._seconds + time.perf_counter() - started)
                        )
                if stop and done < options.steps:
                    # No process ends before the first one has saved: its end would be taken for a failure.
                    self.world.barrier()
                    raise Interrupted(self.name, done)
        if self._validated_at != options.steps:
            self._validate(options.steps)
        self._seconds += time.perf_counter() - started
        self.world.check_equal(self.network.state_dict(), "weights")
        return self._finish()

    def _dropout_seed(self, step: int) -> int:
        rank = self.world.rank
        return self.seed_of(f"step {step} rank {rank}" if rank else f"step {step}")

    def _descend(self, loss: Tensor) -> None:
        spans = self.context.spans
        with spans("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        if self.world.size > 1:
            with spans("gradients of all"):
                self.world.sum_gradients(self.network.parameters())
        with spans("optimiser"):
            if self.options.gradient_clip:
                torch.nn.utils.clip_grad_norm_(
                    self.network.parameters(), self.options.gradient_clip
                )
            self.optimizer.step()
            if self.ema:
                self.ema.update(self.network)

    def _check_finite(self, bad_step: int, done: int, checkpoint: CheckpointFile | None) -> None:
        """bad_step: of this process, or -1; the earliest of any process is what counts."""
        bad_step = self.world.least(bad_step if bad_step >= 0 else done)
        if bad_step == done:
            return
        kept = (
            f"The last good checkpoint is {str(checkpoint.path)!r}."
            if checkpoint and checkpoint.exists()
            else "No checkpoint had been written yet."
        )
        raise UserError(
            f"the loss of stage {self.name!r} was not finite at step {bad_step + 1} of {self.options.steps}. {kept}\n"
            f"Lower its learning rate (now {self.options.lr:g}), set gradient_clip = 1.0, or check the data for constant images"
        )

    def _log(self, step: int, terms: Mapping[str, Tensor], seconds: float) -> None:
        whole = self.world.sum(torch.stack([value.double() for value in terms.values()]))
        if not self.world.is_first:
            return
        metrics = dict(zip(terms, whole.tolist(), strict=True))
        metrics["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics["images_per_second"] = step * self.images_per_step / seconds
        self.context.on_metrics(self.name, step, self.options.steps, metrics)

    def _validate(self, step: int) -> None:
        evaluated = self.ema.module if self.ema else self.network
        assert isinstance(evaluated, TargetNetwork)
        with self.context.spans("evaluation"):
            accuracy = self.world.from_first(lambda: self.validate(evaluated))
        self._validated_at = step
        if accuracy is None:
            return
        if self.world.is_first:
            self.context.on_metrics(
                self.name, step, self.options.steps, {"validation_accuracy": accuracy}
            )
        # Ties go to the later weights: they have seen more data.
        if self._best is None or accuracy >= self._best[0]:
            self._best = (accuracy, step, _copy(evaluated.state_dict()))

    def _finish(self) -> StageResult:
        steps = self.options.steps
        accuracy: float | None = None
        best_step = steps
        if self._best is not None:
            accuracy, best_step, state = self._best
            self.network.load_state_dict(state)
        elif self.ema:
            self.network.load_state_dict(self.ema.module.state_dict())
        return StageResult(
            stage=self.name,
            steps=steps,
            seconds=self._seconds,
            images_per_second=steps * self.images_per_step / max(self._seconds, 1e-9),
            images_synthesised=steps * self.images_synthesised_per_step,
            best_step=best_step,
            validation_accuracy=accuracy,
            compiled=self.compile.compiled,
            compile_reason=self.compile.reason,
            compile_seconds=self._clock.seconds,
            overlap=self.overlap.ahead,
            overlap_reason=self.overlap.reason,
        )

    def _state(self, step: int, seconds: float) -> dict[str, Any]:
        best = None
        if self._best is not None:
            best = {"accuracy": self._best[0], "step": self._best[1], "network": self._best[2]}
        return {
            "stage": self.name,
            "step": step,
            "seconds": seconds,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": {"updates": self.ema.num_updates, "network": self.ema.module.state_dict()}
            if self.ema
            else None,
            "best": best,
            "validated_at": self._validated_at,
        }

    def _restore(self, state: Mapping[str, Any]) -> int:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema and state["ema"]:
            self.ema.module.load_state_dict(state["ema"]["network"])
            self.ema.num_updates = state["ema"]["updates"]
        if state["best"]:
            self._best = (
                state["best"]["accuracy"],
                state["best"]["step"],
                state["best"]["network"],
            )
        self._validated_at = state["validated_at"]
        self._seconds = state["seconds"]
        return int(state["step"])


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def ramp(step: int, ramp_steps: int) -> float:
    """A weight's linear rise to 1: (step + 1) / ramp_steps, at most 1; 1 throughout for ramp_steps = 0."""
    return min(1.0, (step + 1) / ramp_steps) if ramp_steps else 1.0
