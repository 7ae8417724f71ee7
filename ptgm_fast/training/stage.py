"""The definition of a stage: the batches it trains on, the losses it minimizes, how it is validated. `loop.fit` trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.engine import plan_overlap
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.models.precision import for_training
from ptgm_fast.sampling import BLOCK, Pool, PoolOrder, SourceModels, derive_seed
from ptgm_fast.spans import Spans, no_spans
from ptgm_fast.training.distributed import check_share
from ptgm_fast.training.execution import Execution, decide, wrap
from ptgm_fast.training.options import StageOptions
from ptgm_fast.training.pools import fill_together


class Stage(ABC):
    """One stage of a run over `network`, which `loop.fit` trains in place.

    A step computes `losses` of the batch that `make` builds from `batch_inputs`. All randomness is addressed by (seed, stage,
    step), so a checkpoint holds no RNG state and a resumed stage continues bit for bit. A step has the same samples
    whatever the number of processes: each process takes its share (`samples`), and its means are weighted by the size of that
    share (`share_of_mean`).
    """

    name: str
    images_per_step: int
    pseudo_images_per_step: int
    validate_every: int = 0
    # Decay of an average of the weights that only teaches, beside the one that is evaluated; 0: there is none.
    teacher_decay: float = 0.0

    def __init__(
        self,
        network: TargetNetwork,
        source: SourceModels,
        options: StageOptions,
        *,
        batches: dict[str, int],
        form: tuple[int, int, int],
        seed: int,
        execution: Execution,
        pool: Pool | None = None,
    ) -> None:
        """batches: the sizes of a step's batches, by the names of their settings. form: (channels, height, width) of their
        images. pool: where pseudo images come from, instead of the generator at every step. Changes no weight.

        Raises UserError for what would fail later: a batch with fewer images than processes, graph capture without CUDA, a
        pool too small for its batches; also as `execution.decide` and `plan_overlap`.
        """
        self.network, self.source, self.options, self.seed = network, source, options, seed
        self.group = execution.group
        self.device = next(network.parameters()).device
        # The first: of what makes images and labels; the second: of the forward that is trained.
        self.precision, self.engine = execution.precision, execution.engine
        self.training_precision = for_training(execution.precision, self.device)
        self.deterministic = execution.deterministic
        for setting, size in batches.items():
            check_share(size, setting, self.group)
        if self.engine.capture and self.device.type != "cuda":
            raise UserError(
                f"engine.capture = true replays a CUDA graph, and the device is {str(self.device)!r}; "
                "leave it out, or set device"
            )
        self.compilation = decide(
            execution.compile,
            network,
            self.device,
            steps=options.steps,
            shape=(sum(self.group.share(size)[1] for size in batches.values()), *form),
            precision=self.training_precision,
            group=self.group,
        )
        self.overlap = plan_overlap(self.engine.overlap, source)
        self.features = wrap(
            network,
            device=self.device,
            precision=self.training_precision,
            compiled=self.compilation.compiled,
            group=self.group,
        )
        self.pool = pool
        if pool is not None:
            setting = f"{self.name.replace('-', '_')}.batch_size"
            if len(pool) < 2 * batches[setting]:
                raise UserError(
                    f"a pool of {len(pool)} images is too small for {setting} = {batches[setting]}: at least "
                    f"{2 * batches[setting]} images are needed so that no batch shows an image twice. Raise synthesis.images (for P-SSL images_per_target)"
                )
            self.pool_order = PoolOrder(len(pool), seed=seed, purpose=f"{self.name}/pool order")

    @property
    def images_served(self) -> int:
        """The number of pseudo samples over all steps."""
        return self.options.steps * self.pseudo_images_per_step

    @property
    def images_synthesized(self) -> int:
        """The number of images that must be made for all steps; 0 for a pool that is only read."""
        if self.pool is None:
            return self.images_served
        needed = -(-self.images_served // BLOCK) * BLOCK
        return min(len(self.pool), needed) if self.pool.recipe else 0

    def prepare(self, spans: Spans = no_spans) -> None:
        """Compute what all steps need, once before the first step."""
        if self.pool is not None:
            self.pool.spans = spans
            fill_together(self.pool, self.group)

    def pool_images(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """The pool's images for the samples from `start` on, uint8 [count, C, H, W], and their labels, int64 [count]."""
        assert self.pool is not None
        images, labels = self.pool.take(self.pool_order.indices(start, count))
        return images.to(self.device), labels.to(self.device)

    @abstractmethod
    def batch_inputs(self, step: int) -> tuple[int | Tensor, ...]:
        """What distinguishes a step's batch from those of other steps, on the stage's device: first sample numbers, orders."""

    @abstractmethod
    def make(self, spans: Spans, *inputs: Any) -> Any:
        """Build a step's batch from `batch_inputs`: everything in a step that does not depend on the trained weights.

        It can therefore be prefetched, in another thread or on another stream. It must depend on nothing but the inputs and
        must not read a value on the host: it may be captured as a CUDA graph, whose inputs are all tensors.
        """

    @abstractmethod
    def losses(
        self, step: int, batch: Any, average: nn.Module | None = None, spans: Spans = no_spans
    ) -> dict[str, Tensor]:
        """The loss terms of a step as scalars; the entry ``loss`` is minimized, the others are only logged.

        batch: what `make` built for the step. average: the moving average of the network that teaches, if there is one.
        Each term is this process's part (`share_of_mean`): summed over processes, the terms are those of the whole batch.
        """

    def state(self) -> dict[str, Any]:
        """State, beside the weights, that `losses` carries from step to step; a checkpoint holds it so that a resume is exact."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a dict that `state` returned."""
        assert not state, "the state of another stage"

    def validate(self, network: TargetNetwork) -> float | None:
        """Validation accuracy by which the best weights are chosen, or None: the last weights are kept."""
        return None

    def make_batch(self, step: int, spans: Spans = no_spans) -> Any:
        """The batch of a step."""
        # Each thread has its own grad mode, which is on by default.
        with torch.no_grad():
            return self.make(spans, *self.batch_inputs(step))

    def samples(self, step: int, batch: int) -> tuple[int, int]:
        """This process's samples of a step: the first one's number in the run, and how many."""
        offset, number = self.group.share(batch)
        return step * batch + offset, number

    def share_of_mean(self, mean: Tensor, batch: int) -> Tensor:
        """This process's part of the mean over a whole batch; the parts of all processes sum to that mean."""
        number = self.group.share(batch)[1]
        return mean if number == batch else mean * (number / batch)

    def dropout_seed(self, step: int) -> int:
        """The seed of torch's own random numbers in a training step. It differs between processes."""
        rank = self.group.rank
        return derive_seed(
            self.seed, f"{self.name}/step {step}" + (f" rank {rank}" if rank else "")
        )
