"""The eager loop's training: torch's own SGD, one-cycle schedule and weight average, with the config's settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from eager_loop import Loop
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel

from ptgm_fast.models import TargetNetwork
from ptgm_fast.runs.task import Task
from ptgm_fast.training.evaluation import evaluate
from ptgm_fast.training.options import StageOptions


def warmed_up(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """The stages' weight average, for torch's AveragedModel: d = min(decay, (1 + t) / (10 + t)).

    With torch's constant decay the average would lag a hundred steps behind, and reach an accuracy that much later.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, 1 - now)

    return update


@dataclass
class Training:
    """A loop with its optimizer, schedule and weight average; seconds: of the steps alone."""

    loop: Loop
    losses: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        options: StageOptions = self.loop.options
        if options.optimizer != "sgd" or options.schedule != "one-cycle" or options.gradient_clip:
            raise ValueError("the eager loop implements one-cycle SGD without clipping only")
        network = self.loop.network.train()
        weights = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": options.weight_decay},
            {"params": others},
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=options.lr,
            momentum=options.momentum,
            nesterov=True,
        )
        self.schedule = OneCycleLR(
            self.optimizer,
            max_lr=options.lr,
            total_steps=options.steps,
            cycle_momentum=False,
            final_div_factor=400,
        )
        self.average = (
            AveragedModel(network, multi_avg_fn=warmed_up(options.ema_decay), use_buffers=True)
            if options.ema_decay
            else None
        )

    @property
    def evaluated(self) -> TargetNetwork:
        """The network that is evaluated: the weight average if there is one."""
        averaged: Any = self.average.module if self.average else self.loop.network
        return averaged

    def step(self) -> None:
        loss = self.loop.loss(*self.loop.batch())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.loop.network)
        self.losses.append(loss.detach())

    def run(self, steps: int, *, every: int = 0, then: Callable[[], None] = lambda: None) -> None:
        """Take `steps` steps; call `then` after every `every` of them. Its time does not count."""
        for done in range(1, steps + 1):
            started = time.perf_counter()
            self.step()
            self.seconds += time.perf_counter() - started
            if every and done % every == 0:
                then()


def accuracy(network: nn.Module, task: Task, *, of: str) -> float:
    """Accuracy on the task's images `of`: validation or test."""
    images = getattr(task.data, of)
    return evaluate(
        network, task.data.normalizer(task.device), images.images, images.labels
    ).accuracy
