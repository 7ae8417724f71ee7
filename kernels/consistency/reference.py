"""The reference definition of consistency in plain PyTorch, and its gradient in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def consistency(
    weak_logits: Tensor,
    strong_logits: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
) -> Tensor:
    """Return the loss of each sample [N]; autograd gives the gradient of the strong logits."""
    weak, strong = _compute(weak_logits.detach()), _compute(strong_logits)
    counts, nothing = _counts(weak, threshold, class_thresholds)
    # Samples that do not count are masked first, so that not even a NaN there reaches the loss or the gradient.
    strong = strong.where(counts[:, None], 0.0)
    if method == "fixmatch":
        loss = F.cross_entropy(strong, weak.argmax(1), reduction="none")
    elif method == "mse":
        loss = (weak.softmax(1) - strong.softmax(1)).square().mean(1)
    else:
        log_q, log_p = (weak / temperature).log_softmax(1), strong.log_softmax(1)
        q = log_q.exp()
        # 0 log 0 = 0: a class that the target excludes adds nothing, even if the strong view excludes it too.
        loss = (q * (log_q - log_p)).where(q > 0, 0.0).sum(1)
    loss = loss.where(counts, nothing)
    return loss if sample_weight is None else loss * _compute(sample_weight.detach())


def consistency_gradient(
    weak_logits: Tensor,
    strong_logits: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
) -> Tensor:
    """Return d loss[i] / d strong_logits[i, :], float32 or float64 [N, C]."""
    weak, strong = _compute(weak_logits.detach()), _compute(strong_logits.detach())
    p = strong.softmax(1)
    if method == "fixmatch":
        gradient = p - F.one_hot(weak.argmax(1), weak.shape[1])
    elif method == "mse":
        difference = p - weak.softmax(1)
        mean = (p * difference).sum(1, keepdim=True)
        gradient = (2 / weak.shape[1]) * p * (difference - mean)
    else:
        gradient = p - (weak / temperature).softmax(1)
    if sample_weight is not None:
        gradient = gradient * _compute(sample_weight.detach())[:, None]
    counts, _ = _counts(weak, threshold, class_thresholds)
    return gradient.where(counts[:, None], 0.0)


def _compute(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _counts(
    weak: Tensor, threshold: float, class_thresholds: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return m = [max p_w >= threshold], and the loss of a row that does not count: 0, or NaN if max p_w is NaN."""
    confidence = weak.softmax(1).amax(1)
    least: Tensor | float = threshold
    if class_thresholds is not None:
        least = _compute(class_thresholds.detach())[weak.argmax(1)]
    return confidence >= least, confidence * 0
