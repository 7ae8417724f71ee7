"""Soft labels mixed in the generator's class-embedding space: `class_mix`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..op import Op

_class_mix: Op[Tensor] = Op(
    "class_mix(Tensor logits, Tensor embedding, float temperature, int? top_k) -> Tensor",
    lambda logits, embedding, *_: embedding.new_empty(len(logits), embedding.shape[1]),
    differentiable=("logits", "embedding"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def class_mix(
    logits: Tensor,
    embedding: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    impl: str | None = None,
) -> Tensor:
    """softmax(logits / temperature) @ embedding: the mean class embedding under each row's soft label.

    This is how pseudo conditional sampling (Yamaguchi et al. 2022, arXiv:2204.12833) conditions a generator on a
    target image: logits are the source classifier's, embedding the generator's class table.

    logits [N, C], embedding [C, D], C >= 1, each float32, bfloat16, float16 (float64 in the reference only); returns
    [N, D] of the embedding's dtype, computed in float32. temperature > 0: below 1 sharpens, above 1 flattens.
    top_k: only the classes whose logit is at least the k-th largest of the row take part, ties included, and the
    softmax runs over them. A row with a NaN or with nothing but -inf gives NaN, as softmax does.
    Gradients flow to logits and embedding; the backward pass is the reference's. impl: one of
    `dispatch.IMPLEMENTATIONS`, or None for the fastest.
    Raises ValueError for shapes, dtypes or devices that do not fit, temperature <= 0 or not finite, or top_k < 1.
    """
    for name, tensor in (("logits", logits), ("embedding", embedding)):
        if tensor.ndim != 2 or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} must be a matrix of floats, got {tensor.dtype} of shape {list(tensor.shape)}"
            )
    if logits.shape[1] != embedding.shape[0] or logits.shape[1] < 1:
        raise ValueError(
            "logits [N, C] and embedding [C, D] must have one C >= 1, "
            f"got {list(logits.shape)} and {list(embedding.shape)}"
        )
    if logits.device != embedding.device:
        raise ValueError(
            f"logits and embedding must be on one device, got {logits.device} and {embedding.device}"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all classes, got {top_k}")
    return _class_mix(logits, embedding, float(temperature), top_k, impl=impl)
