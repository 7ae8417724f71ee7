"""The call into csrc/pseudo_label.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast import _C

from .. import dispatch


def pseudo_label(
    logits: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.pseudo_label` in a single pass over the logits."""
    num, classes = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    labels = torch.empty(num, dtype=torch.int64)
    confidence = torch.empty(num, dtype=torch.float32)
    mask = torch.empty(num, dtype=torch.bool)
    _C.pseudo_label(
        logits.data_ptr(),
        logits.stride(0),
        num,
        classes,
        dispatch.DTYPE_CODES[logits.dtype],
        temperature,
        threshold,
        labels.data_ptr(),
        confidence.data_ptr(),
        mask.data_ptr(),
        dispatch.num_threads(),
    )
    return labels, confidence, mask
