"""The reference definition of pseudo_label in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def pseudo_label(
    logits: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return argmax(logits), max softmax(logits / temperature) and confidence >= threshold."""
    values = logits if logits.dtype == torch.float64 else logits.float()
    confidence = (values / temperature).softmax(1).amax(1).float()
    return values.argmax(1), confidence, confidence >= threshold
