"""What a sampler yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """The pseudo samples of one step.

    images: [N, C, H, W], the weak view if views were requested, else the generator's images in [-1, 1]. strong: the
    strong view, or None. labels: int64 [N], the source class (uniform) or the index of the target image that a sample
    was made for (conditioned). soft_labels: float32 [N, K], the soft labels given to the generator; None with uniform
    labels. indices: int64 [N], the sample numbers, which together with the seed determine the batch. generated: int64
    [N], the numbers of the generated images shown, each of which `reuse` serves several times.
    """

    images: Tensor
    strong: Tensor | None
    labels: Tensor
    soft_labels: Tensor | None
    indices: Tensor
    generated: Tensor


@dataclass
class Counts:
    """Numbers of images generated and of samples served from them."""

    synthesized: int = 0
    served: int = 0
