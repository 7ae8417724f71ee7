"""The torch.library side of pseudo_label: schema and fake kernel. The implementation is chosen inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..registration import register

FLOAT64 = "it computes in float32; float64 logits need 'reference'"


def run(
    logits: Tensor, temperature: float, threshold: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """labels, confidence and mask by the implementation of that name, or by the fastest for ''."""
    unfit = FLOAT64 if logits.dtype == torch.float64 else ""
    module: Any = dispatch.module_for("pseudo_label", logits.device.type, impl or None, unfit)
    return module.pseudo_label(logits, temperature, threshold)


def _fake(
    logits: Tensor, temperature: float, threshold: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    num = logits.shape[0]
    kinds = (torch.int64, torch.float32, torch.bool)
    labels, confidence, mask = (logits.new_empty(num, dtype=kind) for kind in kinds)
    return labels, confidence, mask


op = register(
    "pseudo_label(Tensor logits, float temperature, float threshold, str impl) -> (Tensor, Tensor, Tensor)",
    run,
    _fake,
)
