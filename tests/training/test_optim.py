"""Schedules as functions of the step, parameter groups, the moving average."""

import math

import pytest
import torch
from torch import nn

from ptgm_fast.training.optim import ExponentialMovingAverage, build_optimizer, learning_rate
from ptgm_fast.training.options import OptimizerOptions


def test_cosine_agrees_with_torch() -> None:
    options = OptimizerOptions(lr=0.3, schedule="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert learning_rate(options, step, 50) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        )
        optimizer.step()
        theirs.step()


def test_one_cycle_agrees_with_torch() -> None:
    options = OptimizerOptions(lr=0.1, schedule="one-cycle")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=1000)
    for step in range(1000):
        # torch turns at step 0.3 n - 1, ours at 0.3 n: one step's difference in phase.
        assert learning_rate(options, step, 1000) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-3
        )
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_rates_of_short_stages_are_positive_and_bounded(schedule: str, steps: int) -> None:
    options = OptimizerOptions(lr=0.1, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(options, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.1 and math.isfinite(rate) for rate in rates)


def test_biases_and_norms_are_not_decayed() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    for name in ("sgd", "adamw"):
        groups = build_optimizer(
            module, OptimizerOptions(optimizer=name, weight_decay=0.5)
        ).param_groups  # type: ignore[arg-type]
        assert [p.ndim > 1 for p in groups[0]["params"]] == [True, True]
        assert groups[0]["weight_decay"] == 0.5
        assert groups[1]["weight_decay"] == 0.0
        assert sum(len(g["params"]) for g in groups) == len(list(module.parameters()))


def test_average_is_its_formula() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = ExponentialMovingAverage(module, 0.5)
    expected = module[0].weight.detach().clone()
    for t in range(4):
        with torch.no_grad():
            module[0].weight.add_(1.0)
            module[1].num_batches_tracked += 1
        average.update(module)
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
        assert torch.allclose(average.module[0].weight, expected)  # type: ignore[index]
        assert int(average.module[1].num_batches_tracked) == t + 1  # type: ignore[index, arg-type]
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
