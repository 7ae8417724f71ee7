"""Optimizers, learning rates as functions of the step, and the exponential moving average of weights."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ptgm_fast.training.options import OptimizerOptions

Network = TypeVar("Network", bound=nn.Module)


def build_optimizer(module: nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; biases and norm parameters (one dimension) get no weight decay.

    On GPUs it uses torch's fused kernels, on CPUs torch's default implementation.
    """
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = all(p.device.type == "cuda" for p in decayed + others) or None
    lr, momentum = options.lr, options.momentum
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=fused)


def learning_rate(options: OptimizerOptions, step: int, steps: int) -> float:
    """The learning rate of a step, 0 <= step < steps. It has no state, so a resume needs only the step.

    cosine: lr (1 + cos(pi s)) / 2 with s = step / steps (Loshchilov and Hutter, arXiv:1608.03983, eq. 5).
    one-cycle: from lr / 25 up to lr over the first 30 % and down to lr / 1e4, both along half a cosine
    (Smith and Topin, arXiv:1708.07120; the shape of torch's OneCycleLR).
    """
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "cosine":
        return options.lr * (1 + math.cos(math.pi * step / steps)) / 2
    peak = 0.3 * steps
    if step < peak:
        return _half_cosine(options.lr / 25, options.lr, step / peak)
    return _half_cosine(options.lr, options.lr / 1e4, (step - peak) / max(1.0, steps - 1 - peak))


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, fraction))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class ExponentialMovingAverage(Generic[Network]):
    """A moving average of a module's floating-point tensors: a <- d a + (1 - d) w, d = min(decay, (1 + t) / (10 + t)).

    The warm-up of d (t counts the updates) lets short stages forget their random start. Batch-norm
    statistics are averaged like weights; integer counters are copied. The average, `module`, is in eval mode and takes no
    gradient.
    """

    def __init__(self, module: Network, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, module: Network) -> None:
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        # All tensors at once: on a GPU a few launches instead of one per tensor.
        averages, values = _split(pairs, floating=True)
        torch._foreach_lerp_(averages, values, 1 - decay)
        counters, counts = _split(pairs, floating=False)
        if counters:
            torch._foreach_copy_(counters, counts)


def _split(
    pairs: list[tuple[Tensor, Tensor]], *, floating: bool
) -> tuple[list[Tensor], list[Tensor]]:
    kept = [pair for pair in pairs if pair[0].is_floating_point() is floating]
    return [average for average, _ in kept], [value for _, value in kept]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
