"""The definition in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def pseudo_label(
    logits: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, confidence and mask of softmax(logits / temperature)."""
    confidence, labels = (logits.float() / temperature).softmax(1).max(1)
    return labels, confidence, confidence >= threshold
