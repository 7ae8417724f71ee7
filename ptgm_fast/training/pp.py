"""Stage 1, pseudo pre-training (PP): cross-entropy on generated images of uniform source labels."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.sampling import Pool, SourceModels, Synthesis
from ptgm_fast.spans import Spans, no_spans
from ptgm_fast.training.execution import Execution
from ptgm_fast.training.options import HALF_SIDE_FIRST, WHOLE_SIDE, Phase, PPOptions
from ptgm_fast.training.stage import Stage

_log = logging.getLogger("ptgm_fast")
# In pixels: the smallest side of the images that resolution = "auto" starts with.
LEAST_SIDE = 8


class PseudoBatch(NamedTuple):
    """This process's part of a batch: views [B, C, H, W] and labels, int64 [B]."""

    inputs: Tensor
    labels: Tensor


class PseudoPreTraining(Stage):
    """minimize CE(f(x), y), y ~ Uniform{0..K_s-1}, z ~ N(0, I), x = view(G_s(z, y)), on the head ``source``.

    Yamaguchi et al., arXiv:2204.12833, pseudo pre-training. The head stays on the network for the target
    stage, which may use it (source-head loss, distillation) or not. There are no target images to validate on: the last
    weights are kept.
    """

    name = "pp"

    def __init__(
        self,
        network: TargetNetwork,
        source: SourceModels,
        options: PPOptions,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        form: tuple[int, int, int] | None = None,
        seed: int,
        execution: Execution,
        pool: Pool | None = None,
    ) -> None:
        """mean, std, form: of the images that the network trains on; form is (channels, height, width), None the generator's."""
        self._form = form or source.image_shape
        super().__init__(
            network,
            source,
            options,
            batches={"pp.batch_size": options.batch_size},
            form=self._form,
            seed=seed,
            execution=execution,
            pool=pool,
        )
        self.synthesis = Synthesis(
            source,
            seed=seed,
            purpose=self.name,
            weak=options.views,
            mean=mean,
            std=std,
            form=form,
            precision=self.precision,
        )
        self.images_per_step = options.batch_size
        self.pseudo_images_per_step = options.batch_size
        self._phases = self._phases_of(options)

    def _phases_of(self, options: PPOptions) -> tuple[Phase, ...]:
        """The phases to train in. Raises UserError for a size that the network or a captured step does not support."""
        asked = options.resolution
        if asked == "auto" and min(self._size(0.5)) < LEAST_SIDE:
            return WHOLE_SIDE
        phases = HALF_SIDE_FIRST if asked == "auto" else asked
        smaller = [self._size(part) for part, _ in phases if part < 1]
        for problem in filter(None, map(self._refusal, smaller)):
            if asked == "auto":
                _log.info("PP trains on full-size images from the first step: %s", problem)
                return WHOLE_SIDE
            raise UserError(
                f"pp.resolution: {problem}; leave it out, or choose other fractions of the side"
            )
        return phases

    @torch.no_grad()
    def _refusal(self, size: tuple[int, int]) -> str:
        """Why the stage cannot train on images of this height and width; empty if it can."""
        if self.engine.capture:
            return "engine.capture replays steps of one size"
        training = self.network.training
        try:
            self.network.eval()(torch.zeros(2, self._form[0], *size, device=self.device))
        except Exception as error:  # a user's network may raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            height, width = size
            return f"the target network does not take images of {height}x{width} ({reason})"
        finally:
            self.network.train(training)
        return ""

    def _size(self, part: float) -> tuple[int, int]:
        _, height, width = self._form
        return max(1, round(part * height)), max(1, round(part * width))

    def size_of(self, step: int) -> tuple[int, int] | None:
        """Height and width of a step's views; None means full size."""
        last = self._phases[-1][0]
        part = next((part for part, end in self._phases if step < end * self.options.steps), last)
        return None if part == 1 else self._size(part)

    def make_batch(self, step: int, spans: Spans = no_spans) -> PseudoBatch:
        with torch.no_grad():
            start, *served = self.batch_inputs(step)
            images, labels = served or (None, None)
            return self.make(spans, start, images, labels, self.size_of(step))

    def batch_inputs(self, step: int) -> tuple[Any, ...]:
        start, count = self.samples(step, self.options.batch_size)
        return (start,) if self.pool is None else (start, *self.pool_images(start, count))

    def make(
        self,
        spans: Spans,
        start: int | Tensor,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> PseudoBatch:
        if images is None or labels is None:
            count = self.group.share(self.options.batch_size)[1]
            with spans("latents"):
                labels = self.synthesis.labels(count, start)
            images = self.synthesis.images(count, start, labels, "class", spans)
        inputs, _ = self.synthesis.views(images, start, spans, size=size)
        return PseudoBatch(inputs, labels)

    def losses(
        self,
        step: int,
        batch: PseudoBatch,
        average: nn.Module | None = None,
        spans: Spans = no_spans,
    ) -> dict[str, Tensor]:
        with spans("forward"):
            logits = self.network.heads["source"](self.features(batch.inputs))
        with spans("loss"):
            loss = F.cross_entropy(logits, batch.labels)
            accuracy = (logits.detach().argmax(1) == batch.labels).float().mean()
        whole = self.options.batch_size
        return {
            "loss": self.share_of_mean(loss, whole),
            "accuracy": self.share_of_mean(accuracy, whole),
        }
