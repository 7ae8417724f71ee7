"""What a stage plans: by the work of both sides, and never where a generator draws from torch's own random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from on_disk import same
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.ahead import count_operations, plan_batches, training_operations
from ptgm_fast.training.context import Context
from ptgm_fast.training.distributed import World
from ptgm_fast.training.stage import Stage

Tiny = Callable[..., RunConfig]


def stage_of(task: Task, name: str, **context: Any) -> Stage:
    return make_stage(name, task, task.new_network(), Context(**context))


def draws(task: Task, size: int = 1) -> None:
    """The task's generator adds noise of torch's, and multiplies matrices of `size`."""
    generator = task.source.generator
    honest = generator.generate

    def noisy(*arguments: Any, **settings: Any) -> Tensor:
        images = honest(*arguments, **settings)
        torch.mm(torch.ones(size, size), torch.ones(size, size))
        return images + 1e-3 * torch.randn_like(images)

    generator.generate = noisy  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["pp", "p-ssl"])
def test_always_is_refused_where_it_would_change_numbers(tiny: Tiny, name: str) -> None:
    task = build_task(tiny("engine.overlap=always"))
    draws(task)
    with pytest.raises(UserError, match=r"draws from torch's own random numbers. Use \"auto\""):
        stage_of(task, name).run()


@pytest.mark.parametrize("name", ["pp", "p-ssl"])
@pytest.mark.usefixtures("two_threads")
def test_auto_does_without_where_it_would_change_numbers(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    task = build_task(tiny())
    stage = stage_of(task, name)
    image = torch.zeros(1, 1, 8, 8)
    made = count_operations(lambda: stage.make_batch(0))
    missing = max(0.0, training_operations(stage, image) - made)
    size = max(1, round((missing / 2) ** (1 / 3)))
    draws(task, size)
    # With as much work on both sides auto overlaps; with noise of torch's it does not.
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.zeros_like)
        assert plan_batches(stage, 0).ahead
    plan = plan_batches(stage, 0)
    assert (plan.ahead, plan.reason) == (False, "synthesis draws from torch's own random numbers")


@pytest.mark.usefixtures("two_threads")
def test_planning_changes_nothing(tiny: Tiny) -> None:
    task = build_task(tiny("engine.overlap=always"))
    draws(task)
    network = task.new_network()
    stage = make_stage("p-ssl", task, network, Context())
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(UserError):
        plan_batches(stage, 0)
    assert same(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["pp", "supervised", "p-ssl"])
def test_the_work_of_training_is_counted_per_process(tiny: Tiny, name: str) -> None:
    task = build_task(tiny("p_ssl.method=uda"))
    image = torch.zeros(1, 1, 8, 8)
    alone, half = stage_of(task, name), stage_of(task, name, world=World(1, 2))
    assert training_operations(alone, image) == 2 * training_operations(half, image)
    with torch.no_grad():
        forward = count_operations(lambda: alone.network.network.eval()(image))
    images = {"pp": 3 * 16, "supervised": 3 * 8, "p-ssl": 3 * (8 + 8) + 8}[name]
    assert training_operations(alone, image) == forward * images
