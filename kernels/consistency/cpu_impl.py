"""The call into csrc/consistency.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast import _C

from .. import dispatch

# Must match Method in csrc/consistency.cpp. The soft-target methods differ only in temperature and threshold.
METHOD_CODES = {"uda": 0, "soft-pseudo-label": 0, "fixmatch": 1, "mse": 2}


def consistency(
    weak_logits: Tensor,
    strong_logits: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
    gradient: bool,
    fill: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss float32 [N], its gradient float32 [N, C] (or empty), and which samples count, bool [N].

    fill: write zeros to the gradient rows of samples that do not count; otherwise they stay uninitialized.
    """
    if weak_logits.dtype != strong_logits.dtype:
        weak_logits, strong_logits = weak_logits.float(), strong_logits.float()
    if weak_logits.stride(1) != 1:
        weak_logits = weak_logits.contiguous()
    if strong_logits.stride(1) != 1:
        strong_logits = strong_logits.contiguous()
    num, classes = strong_logits.shape
    class_thresholds = _floats(class_thresholds)
    sample_weight = _floats(sample_weight)
    loss = torch.empty(num, dtype=torch.float32)
    grad = loss.new_empty((num, classes) if gradient else 0)
    counts = torch.empty(num, dtype=torch.bool)
    _C.consistency(
        weak_logits.data_ptr(),
        weak_logits.stride(0),
        strong_logits.data_ptr(),
        strong_logits.stride(0),
        num,
        classes,
        dispatch.DTYPE_CODES[strong_logits.dtype],
        METHOD_CODES[method],
        temperature,
        threshold,
        0 if class_thresholds is None else class_thresholds.data_ptr(),
        0 if sample_weight is None else sample_weight.data_ptr(),
        loss.data_ptr(),
        grad.data_ptr() if gradient else 0,
        counts.data_ptr(),
        fill,
        dispatch.num_threads(),
    )
    return loss, grad, counts


def scale(gradient: Tensor, counts: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient[i, :] * grad[i] as `dtype`, 0 where sample i does not count."""
    num, classes = gradient.shape
    out = torch.empty(num, classes, dtype=dtype)
    _C.consistency_scale(
        gradient.data_ptr(),
        counts.data_ptr(),
        grad.data_ptr(),
        grad.stride(0),
        num,
        classes,
        out.data_ptr(),
        dispatch.DTYPE_CODES[dtype],
        dispatch.num_threads(),
    )
    return out


def _floats(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().float().contiguous()
