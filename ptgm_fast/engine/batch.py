"""What a sampler yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Pseudo samples of one step.

    images: [N, C, H, W], the weak view where views were asked for, else the generator's images in [-1, 1]. strong: the
    strong view, or None. labels: int64 [N], the source class (uniform) or the target image that a sample was made for
    (conditioned). soft_labels: float32 [N, K], what the generator was asked for; None with uniform labels. indices:
    int64 [N], the samples' numbers: they and the seed make the batch. generated: int64 [N], the numbers of the images
    behind them, which `reuse` serves several times.
    """

    images: Tensor
    strong: Tensor | None
    labels: Tensor
    soft_labels: Tensor | None
    indices: Tensor
    generated: Tensor


@dataclass
class Counts:
    """Images that the generator made, and samples that were served of them."""

    synthesized: int = 0
    served: int = 0
