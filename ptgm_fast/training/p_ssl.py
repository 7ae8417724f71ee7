"""Stage 2, pseudo semi-supervised learning: labelled target images, and pseudo samples conditioned on target images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.models.precision import in_precision
from ptgm_fast.sampling import (
    AddressedOrder,
    Pool,
    SourceModels,
    Synthesis,
    conditioning_table,
    derive_seed,
)
from ptgm_fast.sampling.synthesize import addressed_views
from ptgm_fast.spans import Spans, no_spans
from ptgm_fast.training.batchnorm import frozen_statistics, joint_features
from ptgm_fast.training.distributed import check_share
from ptgm_fast.training.execution import Execution
from ptgm_fast.training.options import DistillationOptions, TargetOptions
from ptgm_fast.training.pssl_options import PSSLOptions
from ptgm_fast.training.target import LabelledBatch, SupervisedStage
from ptgm_fast.training.target_data import TargetData
from ptgm_fast.training.unlabelled import UnlabelledLoss


class TargetBatch(NamedTuple):
    """The labelled part of a batch, and this process's pseudo samples, followed by its real unlabelled images.

    provenance, int64 [M]: the target image that each sample was conditioned on (a real image: itself). weak and, for two-view
    methods, strong: views [M, C, H, W]. soft_labels [M, K_s]: what ``source-head`` learns. kept, bool [M]: the samples that
    pass the filter; None without a filter.
    """

    labelled: LabelledBatch
    provenance: Tensor
    weak: Tensor
    strong: Tensor | None
    soft_labels: Tensor
    kept: Tensor | None


# The head that a method's loss is on, if not the target head; "": the features.
HEADS = {"source-head": "source", "feature-mse": ""}


class PseudoSemiSupervised(SupervisedStage):
    """minimize CE(f(x_t), y_t) + distillation + lambda L_u(f, x'), x' = G_s(z, softmax(C_s(x_t) / tau)).

    Unlabelled target images, if given, also condition the generator, and a share of the samples x' are such images
    themselves. Yamaguchi et al., arXiv:2204.12833, pseudo semi-supervised learning. `PSSLOptions.method` chooses L_u; with
    several methods, lambda L_u is their sum, each with its own lambda. The student sees one view of a pseudo sample: the
    strong one if any of the methods uses two views.
    """

    name = "p-ssl"

    def __init__(
        self,
        network: TargetNetwork,
        data: TargetData,
        source: SourceModels,
        options: TargetOptions,
        pssl: PSSLOptions,
        *,
        distillation_options: DistillationOptions,
        seed: int,
        execution: Execution,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(
            network,
            data,
            source,
            options,
            distillation=pssl.distillation,
            distillation_options=distillation_options,
            seed=seed,
            execution=execution,
            batches={"p_ssl.batch_size": pssl.batch_size},
            pool=pool,
        )
        if problem := pssl.lacks_average(options.ema_decay):
            raise UserError(problem)
        self.pssl = pssl
        self.teacher_decay = pssl.teacher_decay
        self.unlabelled = {
            method: UnlabelledLoss(method, pssl, execution.group) for method in pssl.weights
        }
        self.images_per_step = options.batch_size + pssl.batch_size
        self._num_real = 0
        if data.unlabelled is not None:
            self._num_real = pssl.real_images
            self.unlabelled_images = data.unlabelled.images.to(self.device)
            self.real_order = AddressedOrder(
                len(data.unlabelled), seed=seed, purpose="p-ssl/real order", device=self.device
            )
            self._real_views = addressed_views(
                seed,
                "p-ssl/real",
                pssl.weak_views,
                pssl.strong_views if pssl.two_views else None,
                mean=data.mean,
                std=data.std,
            )
        self.pseudo_images_per_step = pssl.batch_size - self._num_real
        if self._num_real:
            # They are spread evenly among the real ones, so a process may have one less than its share.
            half = "half of p_ssl.batch_size (1 - p_ssl.real_share)"
            check_share(self.pseudo_images_per_step // 2, half, self.group)
        self.synthesis = Synthesis(
            source,
            seed=seed,
            purpose=self.name,
            weak=pssl.weak_views,
            strong=pssl.strong_views if pssl.two_views else None,
            mean=data.mean,
            std=data.std,
            form=data.train.form,
            precision=self.precision,
        )
        self._interpolation_seed = derive_seed(seed, "p-ssl/interpolation")
        self.pseudo_order = AddressedOrder(
            data.num_asking, seed=seed, purpose="p-ssl/order", device=self.device
        )

    def prepare(self, spans: Spans = no_spans) -> None:
        """Compute the soft labels of all target images, labelled or not."""
        pssl, recipe = self.pssl, self.pool.recipe if self.pool else None
        with spans("conditioning"):
            # A pool that this run makes has computed them already.
            self.table = (recipe.table if recipe else None) or conditioning_table(
                self.source,
                *self.data.asking,
                temperature=pssl.pcs_temperature,
                top_k=pssl.pcs_top_k or None,
            )
        super().prepare(spans)

    def losses(
        self,
        step: int,
        batch: TargetBatch,
        average: nn.Module | None = None,
        spans: Spans = no_spans,
    ) -> dict[str, Tensor]:
        pssl = self.pssl
        taught: dict[str, dict[str, Tensor]] = {}
        if batch.strong is not None:
            with spans("forward"):
                taught = {
                    teacher: self.taught(batch.weak, average if teacher == "ema" else None)
                    for teacher in pssl.teachers
                }
        student_views = batch.weak if batch.strong is None else batch.strong
        with spans("forward"):
            features, pseudo_features = joint_features(
                self.network, batch.labelled.views, student_views, pssl.batch_norm, self.features
            )
            labelled_logits = self.network.heads["target"](features)
            if batch.labelled.interpolation is not None:
                labelled_logits = self.interpolated(labelled_logits, batch.labelled)
        terms = self.labelled_losses(features, labelled_logits, batch.labelled, spans)
        with spans("loss"):
            for method, weight in pssl.weights.items():
                head = HEADS.get(method, "target")
                student = self.network.heads[head](pseudo_features) if head else pseudo_features
                unlabelled, counted = self.unlabelled[method](
                    student,
                    taught.get(pssl.teacher_of(method), {}).get(head),
                    batch.soft_labels,
                    labelled_logits.detach(),
                    batch.kept,
                )
                unlabelled = self.share_of_mean(unlabelled, pssl.batch_size)
                of_method = f" {method}" if len(pssl.methods) > 1 else ""
                terms[f"unlabelled{of_method}"] = unlabelled
                terms[f"mask_rate{of_method}"] = self.share_of_mean(counted, pssl.batch_size)
                terms["loss"] = terms["loss"] + weight * ramp(step, pssl.ramp_steps) * unlabelled
            if batch.kept is not None:
                terms["kept"] = self.share_of_mean(batch.kept.float().mean(), pssl.batch_size)
            for teacher in list(taught.values())[:1]:
                # How often the teacher predicts a pseudo sample to be of its conditioning image's class.
                agreement = self.agreement(teacher["target"], batch.provenance)
                terms["agreement"] = self.share_of_mean(agreement, pssl.batch_size)
        return terms

    def interpolated(self, logits: Tensor, batch: LabelledBatch) -> Tensor:
        """AdaMatch's random logit interpolation: r z + (1 - r) z', r ~ Uniform[0, 1] for each logit.

        z [B, K_t]: the logits under the joint batch's statistics; z': the logits under the statistics of the labelled images
        alone, which do not update the running statistics (Berthelot et al. 2022, arXiv:2106.04732). Gradients flow through both.
        """
        assert batch.interpolation is not None
        with frozen_statistics(self.network, use_running=False):
            alone = self.network.heads["target"](self.features(batch.views))
        return alone.lerp(logits, batch.interpolation.to(logits.dtype))

    def state(self) -> dict[str, Any]:
        return {method: dict(loss.means.values) for method, loss in self.unlabelled.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for method, loss in self.unlabelled.items():
            loss.means.load(state[method], self.device)

    def batch_inputs(self, step: int) -> tuple[int | Tensor, ...]:
        (start, count), (real_start, real_count) = self.shares(step)
        inputs = super().batch_inputs(step)
        if self._num_real:
            inputs = *inputs, real_start, self.real_order.indices(real_start, real_count)
        if self.pool is not None:
            images, provenance = self.pool_images(start, count)
            return *inputs, start, provenance, images
        return *inputs, start, self.pseudo_order.indices(start, count)

    def shares(self, step: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """This process's pseudo samples of a step, and its real unlabelled images: each as (first index, number).

        The real images are spread evenly over the whole batch, so that each process has its part of both.
        """
        whole, real = self.pssl.batch_size, self._num_real
        start, count = self.samples(step, whole)
        first = start - step * whole
        before, after = first * real // whole, (first + count) * real // whole
        pseudo = step * (whole - real) + first - before, count - (after - before)
        return pseudo, (step * real + before, after - before)

    def make(self, spans: Spans, *inputs: Any) -> TargetBatch:
        labelled_start, index, *rest = inputs
        real = rest[:2] if self._num_real else []
        start, provenance, *served = rest[len(real) :]
        labelled = self.make_labelled(spans, labelled_start, index)
        pssl = self.pssl
        if "adamatch" in pssl.methods:
            # The normal distribution function turns normal draws into uniform ones.
            normal = kernels.latents(
                len(index),
                self.data.train.num_classes,
                seed=self._interpolation_seed,
                start=labelled_start,
                device=self.device,
            )
            labelled = labelled._replace(interpolation=torch.special.ndtr(normal))
        if served:
            (images,) = served
        else:
            with spans("conditioning"):
                condition, kind = self.table.conditions(provenance)
            images = self.synthesis.images(len(provenance), start, condition, kind, spans)
        weak, strong = self.synthesis.views(images, start, spans)
        if real:
            real_start, real_index = real
            provenance = torch.cat([provenance, len(self.labels) + real_index])
            weak, strong = self._with_real(weak, strong, real_start, real_index, spans)
        soft_labels, kept = self.table.soft_labels[provenance], None
        learned = "source-head" in pssl.methods and pssl.source_label == "classifier"
        if learned or pssl.filter == "confidence":
            found = self.source_logits(spans, weak).softmax(1)
            if pssl.filter == "confidence":
                kept = overlap(soft_labels, found) >= pssl.filter_threshold
                # Real images always count.
                kept[len(images) :] = True
            soft_labels = found if learned else soft_labels
        return TargetBatch(labelled, provenance, weak, strong, soft_labels, kept)

    def _with_real(
        self, weak: Tensor, strong: Tensor | None, start: int | Tensor, index: Tensor, spans: Spans
    ) -> tuple[Tensor, Tensor | None]:
        """The views of pseudo samples, followed by those of the unlabelled images `index`."""
        with spans("views"):
            real_weak, real_strong = self._real_views(self.unlabelled_images[index], start=start)
        weak = torch.cat([weak, real_weak])
        if strong is not None and real_strong is not None:
            strong = torch.cat([strong, real_strong])
        return weak, strong

    def agreement(self, weak_logits: Tensor, provenance: Tensor) -> Tensor:
        """The share of samples conditioned on a labelled image that are predicted to be of its class; 0 if there are none."""
        known = provenance < len(self.labels)
        labels = self.labels[provenance.clamp(max=len(self.labels) - 1)]
        right = (weak_logits.argmax(1) == labels) & known
        return right.sum() / known.sum().clamp(min=1)

    @torch.no_grad()
    def taught(self, weak: Tensor, average: nn.Module | None) -> dict[str, Tensor]:
        """Predict the weak views in eval mode, with `average`, or with the network itself if it is None.

        Returns the logits [M, K_t] under ``target`` and the features [M, D] under the empty name."""
        if average is not None:
            assert isinstance(average, TargetNetwork)
            features = in_precision(
                average.features, device=self.device, precision=self.training_precision
            )(weak)
            return {"target": average.heads["target"](features), "": features}
        self.network.eval()
        features = self.features(weak)
        logits = self.network.heads["target"](features)
        self.network.train()
        return {"target": logits, "": features}


def overlap(asked: Tensor, found: Tensor) -> Tensor:
    """sum over classes of min(asked, found), float32 [N]: the overlap of the requested soft labels and those found, [N, K].

    It is 1 minus the total variation distance. For a hard label it is the classifier's probability of that class, by which
    GaFi (Lampis, Lomurno and Matteucci 2023, arXiv:2305.10118) filters samples.
    """
    return torch.minimum(asked, found).sum(1)


def ramp(step: int, ramp_steps: int) -> float:
    """Linear ramp of a weight to 1: (step + 1) / ramp_steps, at most 1; always 1 for ramp_steps = 0."""
    return min(1.0, (step + 1) / ramp_steps) if ramp_steps else 1.0
