"""The mutable state of a stage, as a checkpoint holds it: weights, optimizer, moving averages, the best weights so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ptgm_fast.models import TargetNetwork
from ptgm_fast.training.optim import ExponentialMovingAverage, build_optimizer
from ptgm_fast.training.options import StageOptions


class TrainingState:
    """The state of a stage's training, apart from its step. Everything else is a function of the seed and the step."""

    def __init__(
        self, network: TargetNetwork, options: StageOptions, *, teacher_decay: float = 0.0
    ) -> None:
        """teacher_decay: decay of a separate average for the teacher; 0: the evaluated average teaches."""
        self.network = network
        self.optimizer = build_optimizer(network, options)
        decay = options.ema_decay
        self.average = ExponentialMovingAverage(network, decay) if decay else None
        self._teacher = ExponentialMovingAverage(network, teacher_decay) if teacher_decay else None
        self.validated_at = -1
        self._best: dict[str, Any] | None = None
        self._began = time.perf_counter()

    @property
    def averages(self) -> dict[str, ExponentialMovingAverage[TargetNetwork]]:
        """The moving averages of the network, by their names in a checkpoint."""
        both = {"ema": self.average, "teacher": self._teacher}
        return {name: average for name, average in both.items() if average}

    @property
    def average_network(self) -> TargetNetwork | None:
        return self.average.module if self.average else None

    @property
    def teacher(self) -> TargetNetwork | None:
        """The moving average that teaches, if there is one."""
        return self._teacher.module if self._teacher else self.average_network

    @property
    def evaluated(self) -> TargetNetwork:
        """The network that is validated and kept: the moving average if there is one."""
        return self.average_network or self.network

    def seconds(self) -> float:
        """Seconds of training, including those before the last resume."""
        return time.perf_counter() - self._began

    def validated(self, step: int, accuracy: float | None) -> None:
        """Remember the weights if no earlier ones were better; ties go to the later ones, which have seen more data."""
        self.validated_at = step
        if accuracy is not None and (self._best is None or accuracy >= self._best["accuracy"]):
            weights = {k: v.detach().clone() for k, v in self.evaluated.state_dict().items()}
            self._best = {"accuracy": accuracy, "step": step, "network": weights}

    def keep_best(self, steps: int) -> tuple[float | None, int]:
        """Load the best weights (the last ones without validation) into the network; return their accuracy and step."""
        best = self._best or {"accuracy": None, "step": steps}
        weights: Mapping[str, Tensor] = best.get("network") or self.evaluated.state_dict()
        self.network.load_state_dict(weights)
        return best["accuracy"], best["step"]

    def as_dict(self, stage: str, step: int) -> dict[str, Any]:
        """The state after `step` steps of the stage named `stage`, for `load`."""
        return {
            "stage": stage,
            "step": step,
            "seconds": self.seconds(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": {
                name: {"updates": average.num_updates, "network": average.module.state_dict()}
                for name, average in self.averages.items()
            },
            "best": self._best,
            "validated_at": self.validated_at,
        }

    def load(self, state: Mapping[str, Any]) -> int:
        """Continue from a dict that `as_dict` returned; returns its step."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, average in self.averages.items():
            average.module.load_state_dict(state["averages"][name]["network"])
            average.num_updates = state["averages"][name]["updates"]
        self._best = state["best"]
        self.validated_at = state["validated_at"]
        self._began = time.perf_counter() - state["seconds"]
        return int(state["step"])
