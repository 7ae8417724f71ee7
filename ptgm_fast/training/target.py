"""Supervised training on labelled target data, with or without distillation of the source classifier."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.data import OnDisk
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.sampling import (
    AddressedOrder,
    Pool,
    SourceModels,
    derive_seed,
)
from ptgm_fast.spans import Spans, no_spans
from ptgm_fast.training.distillation import distillation_loss
from ptgm_fast.training.evaluation import evaluate
from ptgm_fast.training.execution import Execution
from ptgm_fast.training.options import DistillationOptions, TargetOptions
from ptgm_fast.training.stage import Stage
from ptgm_fast.training.target_data import TargetData


class LabelledBatch(NamedTuple):
    """This process's labelled part of a batch: normalized views [B, C, H, W] and their labels, int64 [B].

    source_logits [B, K_s]: C_s's logits of the views; None without distillation. interpolation [B, K_t], in [0, 1]: the factors
    by which ``adamatch`` interpolates logits; None without it.
    """

    views: Tensor
    labels: Tensor
    source_logits: Tensor | None
    interpolation: Tensor | None = None


class SupervisedStage(Stage):
    """minimize CE(f(x_t), y_t) + distillation of C_s on x_t (none, logit-matching, soft-target)."""

    name = "supervised"
    pseudo_images_per_step = 0

    def __init__(
        self,
        network: TargetNetwork,
        data: TargetData,
        source: SourceModels,
        options: TargetOptions,
        *,
        distillation: str,
        distillation_options: DistillationOptions,
        seed: int,
        execution: Execution,
        batches: dict[str, int] | None = None,
        pool: Pool | None = None,
    ) -> None:
        if execution.engine.capture and any(isinstance(each.images, OnDisk) for each in data.sets):
            raise UserError(
                "engine.capture needs the target images in memory, but they exceed data.memory_limit: raise it, or "
                "leave engine.capture out"
            )
        super().__init__(
            network,
            source,
            options,
            batches={"training.batch_size": options.batch_size, **(batches or {})},
            form=data.train.form,
            seed=seed,
            execution=execution,
            pool=pool,
        )
        self.data = data
        self.target_options = options
        self.distillation = distillation
        self.distillation_options = distillation_options
        self.images_per_step = options.batch_size
        self.validate_every = options.validate_every
        self.images = data.train.images.to(self.device)
        self.labels = data.train.labels.to(self.device)
        # The order and the views of labelled images do not depend on the method: rows of a comparison share them.
        self.order = AddressedOrder(
            len(self.labels), seed=seed, purpose="target/order", device=self.device
        )
        self._views_seed = derive_seed(seed, "target/views")
        self._mean = torch.tensor(data.mean, dtype=torch.float32, device=self.device).view(
            1, -1, 1, 1
        )
        self._std = torch.tensor(data.std, dtype=torch.float32, device=self.device).view(
            1, -1, 1, 1
        )

    def batch_inputs(self, step: int) -> tuple[int | Tensor, ...]:
        start, count = self.samples(step, self.options.batch_size)
        return start, self.order.indices(start, count)

    def make(self, spans: Spans, *inputs: Any) -> Any:
        return self.make_labelled(spans, *inputs)

    def make_labelled(self, spans: Spans, start: int | Tensor, index: Tensor) -> LabelledBatch:
        """The views of the labelled images `index`, which are the samples start, start + 1, ..."""
        with spans("views"):
            views, _ = kernels.views(
                self.images[index],
                self.target_options.views,
                None,
                seed=self._views_seed,
                start=start,
                mean=self.data.mean,
                std=self.data.std,
            )
        source_logits = None if self.distillation == "none" else self.source_logits(spans, views)
        return LabelledBatch(views, self.labels[index], source_logits)

    def losses(
        self, step: int, batch: Any, average: nn.Module | None = None, spans: Spans = no_spans
    ) -> dict[str, Tensor]:
        with spans("forward"):
            features = self.features(batch.views)
            logits = self.network.heads["target"](features)
        return self.labelled_losses(features, logits, batch, spans)

    def labelled_losses(
        self, features: Tensor, logits: Tensor, batch: LabelledBatch, spans: Spans
    ) -> dict[str, Tensor]:
        """Cross-entropy and, if enabled, distillation; ``loss`` is their sum. logits: those of the target head."""
        whole = self.options.batch_size
        with spans("loss"):
            loss = F.cross_entropy(logits, batch.labels)
            terms = {"cross_entropy": self.share_of_mean(loss, whole)}
            terms["loss"] = terms["cross_entropy"]
            if batch.source_logits is not None:
                distillation = distillation_loss(
                    self.network.heads["source"](features),
                    batch.source_logits,
                    self.distillation,
                    self.distillation_options,
                )
                terms["distillation"] = self.share_of_mean(distillation, whole)
                terms["loss"] = terms["loss"] + terms["distillation"]
        return terms

    def source_logits(self, spans: Spans, views: Tensor) -> Tensor:
        """C_s's logits [N, K_s] of normalized views. The normalization is undone first, since C_s has its own."""
        with spans("classifier"):
            images = views * (2 * self._std) + (2 * self._mean - 1)
            # A step's labels are part of the training forward; those that condition the generator are not.
            return self.source.classify(images, precision=self.training_precision)

    def validate(self, network: TargetNetwork) -> float | None:
        validation = self.data.validation
        if len(validation) == 0:
            return None
        return evaluate(
            network, self.data.normalizer(self.device), validation.images, validation.labels
        ).accuracy
