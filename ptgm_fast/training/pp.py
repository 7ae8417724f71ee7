"""Stage 1, pseudo pre-training (PP): cross-entropy on generated images of uniform source labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.models import TargetNetwork
from ptgm_fast.sampling import SourceModels, Synthesis
from ptgm_fast.spans import Spans
from ptgm_fast.training.context import Context
from ptgm_fast.training.options import PPOptions
from ptgm_fast.training.stage import Stage
from ptgm_fast.training.wrap import Execution


class PseudoBatch(NamedTuple):
    """This process's views [B, C, H, W] and labels, int64 [B], of a step."""

    inputs: Tensor
    labels: Tensor


class PseudoPreTraining(Stage):
    """minimise CE(f(x), y), y ~ Uniform{0..K_s-1}, z ~ N(0, I), x = view(G_s(z, y)), on the head ``source``.

    Yamaguchi et al., arXiv:2204.12833, pseudo pre-training. The head stays on the network for the target
    stage, which may use it (source-head loss, distillation) or not.
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
        seed: int,
        context: Context,
        execution: Execution | None = None,
    ) -> None:
        super().__init__(network, options, seed=seed, context=context, execution=execution)
        self.source = source
        self.synthesis = Synthesis(
            source,
            seed=seed,
            purpose=self.name,
            weak=options.views,
            mean=mean,
            std=std,
            precision=self.precision,
        )
        self.images_per_step = options.batch_size
        self.images_synthesised_per_step = options.batch_size

    def losses(self, step: int, batch: PseudoBatch) -> dict[str, Tensor]:
        spans = self.context.spans
        inputs, labels = batch
        with spans("forward"):
            logits = self.network.heads["source"](self.features(inputs))
        with spans("loss"):
            loss = F.cross_entropy(logits, labels)
            accuracy = (logits.detach().argmax(1) == labels).float().mean()
        whole = self.options.batch_size
        return {"loss": self.of_all(loss, whole), "accuracy": self.of_all(accuracy, whole)}

    def batch_inputs(self, step: int) -> tuple[int]:
        return (self.samples(step, self.options.batch_size)[0],)

    def make(self, spans: Spans, start: int | Tensor) -> PseudoBatch:
        count = self.world.share(self.options.batch_size)[1]
        with spans("latents"):
            labels = self.synthesis.labels(count, start)
        images = self.synthesis.images(count, start, labels, "class", spans)
        inputs, _ = self.synthesis.views(images, start, spans)
        return PseudoBatch(inputs, labels)

    @torch.no_grad()
    def validate(self, network: TargetNetwork) -> float | None:
        # Pseudo pre-training has no target to validate on: the last weights are kept.
        return None
