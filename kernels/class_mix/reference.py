"""The definition of `class_mix` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def class_mix(logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """softmax(logits / temperature) @ embedding, over the classes whose logit is at least the k-th largest."""
    double = torch.float64 in (logits.dtype, embedding.dtype)
    work = torch.float64 if double else torch.float32
    scaled = logits.to(work) / temperature
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.detach().topk(top_k, dim=1).values[:, -1:]
        scaled = scaled.masked_fill(logits < least, -torch.inf)
    return (scaled.softmax(dim=1) @ embedding.to(work)).to(embedding.dtype)
