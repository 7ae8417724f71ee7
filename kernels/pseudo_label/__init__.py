"""Hard pseudo-labels from a classifier's logits, with their confidence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..op import Op

_DTYPES = (torch.int64, torch.float32, torch.bool)
_pseudo_label: Op[tuple[Tensor, Tensor, Tensor]] = Op(
    "pseudo_label(Tensor logits, float temperature, float threshold) -> (Tensor, Tensor, Tensor)",
    lambda logits, *_: tuple(logits.new_empty(len(logits), dtype=kind) for kind in _DTYPES),
)


class PseudoLabel(NamedTuple):
    """labels int64 [N], confidence float32 [N] in (0, 1], mask bool [N]: confidence >= threshold."""

    labels: Tensor
    confidence: Tensor
    mask: Tensor


def pseudo_label(
    logits: Tensor, *, temperature: float = 1.0, threshold: float = 0.0, impl: str | None = None
) -> PseudoLabel:
    """Harden classifier logits into labels with a confidence mask.

    labels = argmax(logits), the first on ties; confidence = max softmax(logits / temperature);
    mask = [confidence >= threshold] (Lee 2013; the threshold as in Sohn et al. 2020, arXiv:2001.07685, eq. 4).

    logits [N, C], any floating dtype, C >= 1; -inf excludes a class. Computes in float32; float64 logits are computed in
    float64, by the reference. A row with a NaN or without a finite maximum has confidence NaN, mask False and an
    arbitrary label. No gradient flows: labels are targets. Raises ValueError if temperature <= 0, threshold is outside
    [0, 1], or logits are not floating-point [N, C].
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floats [N, C] with C >= 1, got {logits.dtype} of shape {list(logits.shape)}"
        )
    if logits.requires_grad:
        logits = logits.detach()
    return PseudoLabel(*_pseudo_label(logits, temperature, threshold, impl=impl))
