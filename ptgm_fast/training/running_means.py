"""Means over the pseudo samples of many steps, and the alignment of predictions by them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ptgm_fast.training.distributed import ProcessGroup

# Keeps a class that is never predicted from being divided by.
SMALLEST = 1e-6


class RunningMeans:
    """Exponential moving averages over the steps, by name: a <- decay a + (1 - decay) mean of the step.

    In float64, over all processes' samples, so the same on each of them; `values` is what a checkpoint has to hold.
    """

    def __init__(self, decay: float, group: ProcessGroup) -> None:
        self.decay, self.group = decay, group
        self.values: dict[str, Tensor] = {}

    def of_step(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of all processes' samples of a step, float64, and their number. values [n, ...]: this process's."""
        total = values.detach().double().sum(0)
        packed = torch.cat([total.reshape(-1), total.new_full((1,), len(values))])
        packed = self.group.sum(packed)
        return (packed[:-1] / packed[-1]).view(total.shape), packed[-1]

    def update(self, name: str, mean: Tensor, start: float | None = None) -> Tensor:
        """The average with a step's mean in it. start: before the first step; None begins with the first mean."""
        before = self.values.get(name, mean if start is None else torch.full_like(mean, start))
        self.values[name] = before.lerp(mean, 1 - self.decay)
        return self.values[name]

    def load(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from the `values` of another."""
        self.values = {name: value.to(device) for name, value in values.items()}


def align(weak_logits: Tensor, means: RunningMeans, labelled_logits: Tensor | None) -> Tensor:
    """Weak logits [N, K] whose softmax is the aligned prediction: p_w target / mean, normalized; no gradient flows.

    mean: the running mean of p_w. target: uniform, or, with logits of labelled images [B, K], the running mean of their
    predictions. Distribution alignment: Berthelot et al. 2020, arXiv:1911.09785, section 3.1 (towards the labels' shares);
    2022, arXiv:2106.04732 (towards predictions); uniform: Chen et al. 2023, arXiv:2301.10921, section 3.3.
    """
    mean, _ = means.of_step(weak_logits.softmax(1))
    mean = means.update("predicted", mean)
    target = torch.full_like(mean, 1 / len(mean))
    if labelled_logits is not None:
        target, _ = means.of_step(labelled_logits.softmax(1))
        target = means.update("predicted of labelled", target)
    # In logits a factor is a summand; softmax normalizes.
    ratio = (target + SMALLEST) / (mean + SMALLEST)
    return weak_logits.detach() + ratio.log().to(weak_logits.dtype)
