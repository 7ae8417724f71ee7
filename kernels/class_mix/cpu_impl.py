"""The call into csrc/class_mix.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast import _C

from .. import dispatch


def class_mix(logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """softmax(logits / temperature) @ embedding, the probabilities never in memory as a whole."""
    num, num_classes = logits.shape
    out = embedding.new_empty(num, embedding.shape[1], dtype=torch.float32)
    if out.numel() > 0:
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        table = embedding.float().contiguous()
        _C.class_mix(
            dispatch.DTYPE_CODES[logits.dtype],
            logits.data_ptr(),
            logits.stride(0),
            table.data_ptr(),
            out.data_ptr(),
            num,
            num_classes,
            embedding.shape[1],
            1.0 / temperature,
            top_k if top_k is not None and top_k < num_classes else 0,
            dispatch.num_threads(),
        )
    return out.to(embedding.dtype)
