"""The definition in plain PyTorch; gradients to the strong logits by autograd."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def consistency(
    weak_logits: Tensor,
    strong_logits: Tensor,
    method: str,
    temperature: float,
    threshold: float,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
) -> Tensor:
    """The loss of each sample, float32 [N]."""
    weak, strong = weak_logits.detach().float(), strong_logits.float()
    probabilities = weak.softmax(1)
    confidence, labels = probabilities.max(1)
    if method == "uda":
        loss = F.kl_div(
            strong.log_softmax(1), (weak / temperature).softmax(1), reduction="none"
        ).sum(1)
    elif method == "fixmatch":
        loss = F.cross_entropy(strong, labels, reduction="none")
    elif method == "soft-pseudo-label":
        loss = F.kl_div(
            strong.log_softmax(1), (weak / temperature).softmax(1), reduction="none"
        ).sum(1)
    else:
        loss = (probabilities - strong.softmax(1)).square().mean(1)
    least = threshold if class_thresholds is None else class_thresholds.float()[labels]
    loss = loss.where(confidence >= least, 0.0)
    return loss if sample_weight is None else loss * sample_weight.float()
