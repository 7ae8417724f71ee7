"""The definition of `class_mix` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def class_mix(logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """softmax(logits / temperature) @ embedding in float32, over the classes whose logit is at least the k-th largest."""
    scaled = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        scaled = scaled.masked_fill(logits < least, -torch.inf)
    return (scaled.softmax(dim=1) @ embedding.float()).to(embedding.dtype)
