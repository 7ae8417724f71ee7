"""Distillation of the source classifier into a source head, on labelled target images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.training.options import DistillationOptions


def distillation_loss(
    side_logits: Tensor, source_logits: Tensor, method: str, options: DistillationOptions
) -> Tensor:
    """The weighted loss that pulls a side head towards the source classifier; a scalar.

    side_logits, source_logits [N, K_s]; the source logits take no gradient.
    logit-matching: mean over samples and classes of (side - source)^2 (Ba and Caruana 2014, arXiv:1312.6184, eq. 1).
    soft-target: the mean over samples of `soft_targets`.
    """
    source_logits = source_logits.detach()
    if method == "logit-matching":
        return options.logit_matching_weight * F.mse_loss(side_logits, source_logits)
    divergence = soft_targets(side_logits, source_logits, options.temperature).mean()
    return options.soft_target_weight * divergence


def soft_targets(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) of student logits s and teacher logits t, both [N, K]; float32 [N].

    A teacher logit of -inf means a class of probability 0. Gradients flow to the student only; the factor T^2 keeps their
    scale as T changes (Hinton et al. 2015, arXiv:1503.02531, section 2).
    """
    student = F.log_softmax(logits / temperature, 1)
    teacher = F.softmax(teacher_logits.detach() / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="none").sum(1)
