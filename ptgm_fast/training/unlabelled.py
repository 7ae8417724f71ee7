"""The losses on pseudo samples, L_u of each P-SSL method."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.training.adaptive import (
    adamatch_thresholds,
    fairness,
    flexmatch_thresholds,
    freematch_thresholds,
    softmatch_weights,
)
from ptgm_fast.training.distillation import soft_targets
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.pssl_options import PREDICTED, PSSLOptions
from ptgm_fast.training.running_means import RunningMeans, align

# The `kernels.consistency` method behind each method that adds its own thresholds, weights or teacher.
LEARNED_AS = {
    "mean-teacher": "mse",
    "flexmatch": "fixmatch",
    "freematch": "fixmatch",
    "softmatch": "fixmatch",
    "adamatch": "soft-pseudo-label",
}


class UnlabelledLoss:
    """L_u of one method, with the running means that it keeps from step to step (`means.values`, for a checkpoint).

    ``uda``, ``fixmatch``, ``soft-pseudo-label`` and ``mse`` are defined by `kernels.consistency`; ``pseudo-label`` is the
    cross-entropy with the labels of `kernels.pseudo_label`. ``mean-teacher`` is ``mse`` towards the average of the weights
    (Tarvainen and Valpola 2017, arXiv:1703.01780, section 2), ``entropy`` the mean of H(p) (Grandvalet and Bengio 2004,
    eq. 4), ``source-head`` the distillation of q into the source head (`soft_targets` at T = `PSSLOptions.source_temperature`).
    With alignment, aligned predictions (`align`) replace the teacher's.
    ``feature-mse`` is the mean over features of (g(strong) - g(weak))^2, with g the network without its head: no head learns
    from pseudo samples (pseudo consistency regularization, Yamaguchi et al. 2023, arXiv:2307.13899; here the weak view's
    features take no gradient).

    ``flexmatch``, ``freematch`` and ``softmatch`` are ``fixmatch`` with the thresholds or weights of `adaptive`; ``freematch``
    adds `fairness`. ``adamatch`` is KL(p_w || p_s) of aligned predictions above the threshold of `adaptive`, which equals the
    paper's cross-entropy up to a constant (Berthelot et al. 2022, arXiv:2106.04732); the stage does its interpolation of the
    labelled images' logits.
    """

    def __init__(self, method: str, options: PSSLOptions, group: ProcessGroup) -> None:
        self.method, self.options = method, options
        self.means = RunningMeans(options.average_decay, group)

    def __call__(
        self,
        student_logits: Tensor,
        weak_logits: Tensor | None,
        soft_labels: Tensor,
        labelled_logits: Tensor,
        kept: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The mean loss over the pseudo samples and the share of samples that count (the mask rate), both scalars.

        student_logits: the target head's logits [N, K_t] of the view that the student sees, the strong one if there is one; for
        ``source-head`` the source head's [N, K_s]. weak_logits [N, K_t]: the teacher's logits of the weak view, for two-view
        methods. soft_labels q [N, K_s]: what ``source-head`` learns. labelled_logits [B, K_t]: of the labelled images, for
        alignment and for the threshold of ``adamatch``. kept, bool [N]: samples where it is False do not count, except in
        running means. Gradients flow to the student only. For ``feature-mse``, student and weak features [N, D] replace both
        logits.
        """
        if self.method in PREDICTED:
            assert weak_logits is not None
            return self._two_views(student_logits, weak_logits, labelled_logits, kept)
        everything = torch.ones((), dtype=torch.float32, device=student_logits.device)
        counted = everything if kept is None else kept.float().mean()
        if self.method == "source-head":
            # The logarithm of a probability is a logit of its softmax.
            loss = soft_targets(student_logits, soft_labels.log(), self.options.source_temperature)
            return (loss if kept is None else loss * kept).mean(), counted
        if self.method == "entropy":
            log_p = F.log_softmax(student_logits, 1)
            loss = -(log_p.exp() * log_p).sum(1)
            return (loss if kept is None else loss * kept).mean(), counted
        if self.method == "feature-mse":
            assert weak_logits is not None
            loss = (student_logits - weak_logits.detach()).square().mean(1)
            return (loss if kept is None else loss * kept).mean(), counted
        pseudo = kernels.pseudo_label(student_logits.detach(), threshold=self.options.threshold)
        mask = (pseudo.mask if kept is None else pseudo.mask & kept).float()
        loss = F.cross_entropy(student_logits, pseudo.labels, reduction="none")
        return (loss * mask).mean(), mask.mean()

    def _two_views(
        self,
        student_logits: Tensor,
        weak_logits: Tensor,
        labelled_logits: Tensor,
        kept: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        method, options, means = self.method, self.options, self.means
        alignment, aligned = options.alignment_of(method), weak_logits
        if alignment != "none":
            aligned = align(
                weak_logits, means, labelled_logits if alignment == "labelled" else None
            )
        threshold = options.threshold if method in ("uda", "fixmatch") else 0.0
        thresholds = weights = None
        if method == "flexmatch":
            thresholds = flexmatch_thresholds(aligned, means, options.threshold)
        elif method == "freematch":
            thresholds = freematch_thresholds(aligned, means)
        elif method == "adamatch":
            thresholds = adamatch_thresholds(labelled_logits, means, options.threshold)
        elif method == "softmatch":
            weights = softmatch_weights(aligned, means)
        if kept is not None:
            weights = kept.float() if weights is None else weights * kept
        # SoftMatch computes its weights from aligned predictions, but learns the labels of the original ones.
        learned = weak_logits if method == "softmatch" else aligned
        loss = kernels.consistency(
            learned,
            student_logits,
            method=LEARNED_AS.get(method, method),
            temperature=options.temperature if method == "uda" else 1.0,
            threshold=threshold,
            class_thresholds=thresholds,
            sample_weight=weights,
        ).mean()
        if method == "softmatch":
            assert weights is not None
            return loss, weights.mean()
        pseudo = kernels.pseudo_label(learned, threshold=threshold)
        counts = pseudo.mask
        if thresholds is not None:
            counts = pseudo.confidence >= thresholds[pseudo.labels]
        if kept is not None:
            counts = counts & kept
        if method == "freematch" and options.fairness_weight:
            loss = loss + options.fairness_weight * fairness(student_logits, counts, means)
        return loss, counts.float().mean()
