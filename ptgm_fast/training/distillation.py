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
    soft-target: T^2 KL(softmax(source / T) || softmax(side / T)), mean over samples (Hinton et al. 2015,
    arXiv:1503.02531, section 2; T^2 keeps the gradient's size as T changes).
    """
    source_logits = source_logits.detach()
    if method == "logit-matching":
        return options.logit_matching_weight * F.mse_loss(side_logits, source_logits)
    temperature = options.temperature
    divergence = F.kl_div(
        F.log_softmax(side_logits / temperature, 1),
        F.log_softmax(source_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return options.soft_target_weight * temperature**2 * divergence
