"""Hard labels of a classifier's logits, with their confidence."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .. import dispatch


class PseudoLabel(NamedTuple):
    """labels int64 [N], confidence float32 [N] in (0, 1], mask bool [N]: confidence >= threshold."""

    labels: Tensor
    confidence: Tensor
    mask: Tensor


def pseudo_label(
    logits: Tensor, *, temperature: float = 1.0, threshold: float = 0.0, impl: str | None = None
) -> PseudoLabel:
    """Harden classifier logits into labels with a confidence mask.

    labels = argmax(logits), confidence = max softmax(logits / temperature), mask = confidence >= threshold
    (Lee 2013; the threshold as in FixMatch, Sohn et al. 2020, arXiv:2001.07685, eq. 4).
    logits [N, C], any floating dtype. No gradient flows: labels are targets. Raises ValueError if
    temperature <= 0, threshold is outside [0, 1], or logits are not [N, C] with C >= 1.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if logits.ndim != 2 or logits.shape[1] < 1 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floats [N, C], got {logits.dtype} of shape {list(logits.shape)}"
        )
    module = dispatch.implementation(
        "pseudo_label", dispatch.select("pseudo_label", logits.device, impl)
    )
    return PseudoLabel(*module.pseudo_label(logits.detach(), temperature, threshold))
