"""Running means over the pseudo samples of many steps, and distribution alignment with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ptgm_fast.training.distributed import ProcessGroup

# Avoids a division by zero for a class that is never predicted.
SMALLEST = 1e-6


class RunningMeans:
    """Named exponential moving averages over steps: a <- decay a + (1 - decay) mean of the step.

    Kept in float64 over all processes' samples, so they are equal on all processes; a checkpoint must hold `values`.
    """

    def __init__(self, decay: float, group: ProcessGroup) -> None:
        self.decay, self.group = decay, group
        self.values: dict[str, Tensor] = {}

    def of_step(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over all processes' samples of a step, float64, and their number. values [n, ...]: this process's samples."""
        total = values.detach().double().sum(0)
        packed = torch.cat([total.reshape(-1), total.new_full((1,), len(values))])
        packed = self.group.sum(packed)
        return (packed[:-1] / packed[-1]).view(total.shape), packed[-1]

    def update(self, name: str, mean: Tensor, start: float | None = None) -> Tensor:
        """Update an average with a step's mean and return it. start: its initial value; None starts with the first mean."""
        before = self.values.get(name, mean if start is None else torch.full_like(mean, start))
        self.values[name] = before.lerp(mean, 1 - self.decay)
        return self.values[name]

    def load(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        """Continue from saved `values`."""
        self.values = {name: value.to(device) for name, value in values.items()}


def align(weak_logits: Tensor, means: RunningMeans, labelled_logits: Tensor | None) -> Tensor:
    """Return weak logits [N, K] whose softmax is the aligned prediction: p_w target / mean, normalized; no gradient flows.

    mean: the running mean of p_w. target: uniform, or, given logits of labelled images [B, K], the running mean of their
    predictions. Distribution alignment: Berthelot et al. 2020, arXiv:1911.09785, section 3.1 (towards the labels' shares);
    2022, arXiv:2106.04732 (towards predictions); uniform: Chen et al. 2023, arXiv:2301.10921, section 3.3.
    """
    mean, _ = means.of_step(weak_logits.softmax(1))
    mean = means.update("predicted", mean)
    target = torch.full_like(mean, 1 / len(mean))
    if labelled_logits is not None:
        target, _ = means.of_step(labelled_logits.softmax(1))
        target = means.update("predicted of labelled", target)
    # A factor on probabilities is a summand on logits; softmax normalizes.
    ratio = (target + SMALLEST) / (mean + SMALLEST)
    return weak_logits.detach() + ratio.log().to(weak_logits.dtype)
