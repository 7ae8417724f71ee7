"""What a stage is: the batches it trains on, the losses it minimizes, how it is validated. `loop.fit` trains it."""

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

    A step is `losses` of what `make` makes of `batch_inputs`. Everything random is addressed by (seed, stage, step), so a
    checkpoint holds no generator state and a resumed stage continues bit for bit. The samples of a step are those
    of the whole batch, whatever the number of processes: each takes its share (`samples`), and its means count by the
    size of it (`share_of_mean`).
    """

    name: str
    images_per_step: int
    pseudo_images_per_step: int
    validate_every: int = 0
    # Of an average of the weights that teaches the stage, beside the one that is evaluated; 0: there is none.
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
        """batches: the sizes of a step's batches by their settings. form: channels, height and width of their images. pool: where pseudo images come from, instead of from
        the generator at every step. Changes no weight.

        Raises UserError for what would fail later: a batch with fewer images than processes, a graph without CUDA, a pool
        too small for its batches, and as `execution.decide` and `plan_overlap`.
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
                    f"a pool of {len(pool)} images is too small for {setting} = {batches[setting]}: no batch shows an image "
                    f"twice from {2 * batches[setting]} images on. Raise synthesis.images (for P-SSL images_per_target)"
                )
            self.pool_order = PoolOrder(len(pool), seed=seed, purpose=f"{self.name}/pool order")

    @property
    def images_served(self) -> int:
        """Pseudo samples of all steps."""
        return self.options.steps * self.pseudo_images_per_step

    @property
    def images_synthesized(self) -> int:
        """Images that all steps need made; none of a pool that is only read."""
        if self.pool is None:
            return self.images_served
        needed = -(-self.images_served // BLOCK) * BLOCK
        return min(len(self.pool), needed) if self.pool.recipe else 0

    def prepare(self, spans: Spans = no_spans) -> None:
        """Compute what all steps need, once, before the first."""
        if self.pool is not None:
            self.pool.spans = spans
            fill_together(self.pool, self.group)

    def pool_images(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """The pool's images behind the samples from `start` on, uint8 [count, C, H, W], and their labels, int64 [count]."""
        assert self.pool is not None
        images, labels = self.pool.take(self.pool_order.indices(start, count))
        return images.to(self.device), labels.to(self.device)

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
    def losses(
        self, step: int, batch: Any, average: nn.Module | None = None, spans: Spans = no_spans
    ) -> dict[str, Tensor]:
        """The loss terms of a step as scalars; the entry ``loss`` is minimized, the others are only logged.

        batch: what `make` made for the step. average: the moving average of the network that teaches, if there is one.
        Each term is
        this process's part (`share_of_mean`): the processes' terms add up to those of the whole batch.
        """

    def state(self) -> dict[str, Any]:
        """What the losses of a step change and those of the next one read: beside the weights, it makes a resume exact."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from such a dict."""
        assert not state, "the state of another stage"

    def validate(self, network: TargetNetwork) -> float | None:
        """Validation accuracy by which the best weights are chosen, or None: the last weights are kept."""
        return None

    def make_batch(self, step: int, spans: Spans = no_spans) -> Any:
        """The batch of a step."""
        # A thread has a grad mode of its own, and its default is to record.
        with torch.no_grad():
            return self.make(spans, *self.batch_inputs(step))

    def samples(self, step: int, batch: int) -> tuple[int, int]:
        """Which samples of a step are this process's: the first one's number in the run, and how many."""
        offset, number = self.group.share(batch)
        return step * batch + offset, number

    def share_of_mean(self, mean: Tensor, batch: int) -> Tensor:
        """This process's part of the mean over a whole batch: the parts of all processes add up to it."""
        number = self.group.share(batch)[1]
        return mean if number == batch else mean * (number / batch)

    def dropout_seed(self, step: int) -> int:
        """Of torch's own random numbers in a step's training, which differ between processes."""
        rank = self.group.rank
        return derive_seed(
            self.seed, f"{self.name}/step {step}" + (f" rank {rank}" if rank else "")
        )
