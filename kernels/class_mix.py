"""Soft labels mixed in the generator's class-embedding space: `class_mix`. Called once per run, so it is plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def class_mix(
    logits: Tensor, embedding: Tensor, *, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Return softmax(logits / temperature) @ embedding: the mean class embedding under each row's soft label.

    This is how pseudo conditional sampling (Yamaguchi et al. 2022, arXiv:2204.12833) conditions a generator on a
    target image: logits are the source classifier's, embedding is the generator's class table.

    logits [N, C] and embedding [C, D], C >= 1, of any floating dtype; returns [N, D] in the embedding's dtype. Computes in
    float32, or in float64 if either input is float64. temperature > 0: below 1 sharpens, above 1 flattens.
    top_k: the softmax runs only over the classes whose logit is at least the k-th largest of the row, ties included.
    A row with a NaN, or with only -inf, gives NaN, as softmax does.
    Gradients flow to logits and embedding.
    Raises ValueError for mismatched shapes, dtypes or devices, temperature <= 0 or not finite, or top_k < 1.
    """
    for name, tensor in (("logits", logits), ("embedding", embedding)):
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be a matrix of floats, got {tensor.dtype} of shape {list(tensor.shape)}"
            )
    if logits.shape[1] != embedding.shape[0] or logits.shape[1] < 1:
        raise ValueError(
            "logits [N, C] and embedding [C, D] must have the same C >= 1, "
            f"got {list(logits.shape)} and {list(embedding.shape)}"
        )
    if logits.device != embedding.device:
        raise ValueError(
            f"logits and embedding must be on the same device, got {logits.device} and {embedding.device}"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all classes, got {top_k}")
    double = torch.float64 in (logits.dtype, embedding.dtype)
    work = torch.float64 if double else torch.float32
    scaled = logits.to(work) / temperature
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.detach().topk(top_k, dim=1).values[:, -1:]
        scaled = scaled.masked_fill(logits < least, -torch.inf)
    return (scaled.softmax(dim=1) @ embedding.to(work)).to(embedding.dtype)
