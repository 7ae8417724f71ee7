"""Whole trainings of the default task: the gain of the recipe, and the gain of the engine on top of it.

pytest benchmarks/end_to_end/test_whole_training.py --benchmark-enable --benchmark-only --rounds 3     (make recipes: also prints the table)

A plain loop (`eager_loop`, in torch's default layout and channels-last) with the recipe of version 0.1.0 (`OLD`), the same loop with the
default recipe, and ours with the default recipe. The plain loop follows the config: pools, progressive resolution, precision, stages, losses.
Plain against plain is the gain of the recipe; ours against plain with the same recipe is the gain of the engine.

A run is a seed's whole budget on two threads, timed from the images in memory: loading the frozen networks, rewriting the generator
(ours), making pools, every step. Validation is not timed, except one of ours at the end; the last weights are tested. Before a plain loop is timed,
each stage's step is compared with ours (`agreement`). A contender whose mean test accuracy over `SEEDS` is more than `MARGIN` below that of the
old recipe in the plain loop (channels-last) fails, and none of its times is kept.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from statistics import mean
from typing import Any

import pytest
import torch
from agreement import assert_same_images, assert_same_step
from eager_loop import LOOPS, SourcePair
from eager_training import Training, accuracy

from ptgm_fast.config import load_config
from ptgm_fast.models import TargetNetwork
from ptgm_fast.runs.pools import Pools
from ptgm_fast.runs.task import Task, build_source, build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.loop import fit

pytest.importorskip("kornia")

GROUP = "a whole training, 2 threads"
SEEDS = (0, 1, 2)
# The defaults of 0.1.0, for settings whose default may have changed since.
OLD = (
    'stages=["pp", "p-ssl"]',
    "synthesis.images=fresh",
    "synthesis.images_per_target=fresh",
    "pp.optimizer=sgd",
    "pp.steps=600",
    "pp.batch_size=128",
    "pp.lr=0.1",
    "pp.weight_decay=5e-4",
    "pp.ema_decay=0",
    "pp.schedule=one-cycle",
    "pp.views=weak",
    "pp.resolution=[[1.0, 1.0]]",
    "training.optimizer=sgd",
    "training.steps=300",
    "training.batch_size=64",
    "training.lr=0.05",
    "training.weight_decay=5e-4",
    "training.ema_decay=0.99",
    "training.schedule=one-cycle",
    "training.views=weak",
    "p_ssl.method=source-head",
    "p_ssl.weight=1.0",
    "p_ssl.batch_size=32",
    "p_ssl.source_label=classifier",
    "p_ssl.source_temperature=1",
    "p_ssl.batch_norm=split",
    "p_ssl.distillation=soft-target",
    "precision=float32",
)
# By contender, its recipe and whether the plain loop is channels-last (None: ours). The first one is what the others must reach.
CONTENDERS: dict[str, tuple[tuple[str, ...], bool | None]] = {
    "eager channels-last, old recipe": (OLD, True),
    "eager, old recipe": (OLD, False),
    "eager channels-last": ((), True),
    "eager": ((), False),
    "ours": ((), None),
}
# Allowed loss of the mean over three seeds, whose standard deviation is 0.3 to 0.5 points.
MARGIN = 0.005
# By contender, the test accuracy of each seed so far.
REACHED: dict[str, list[float]] = {}


@cache
def task_of(recipe: tuple[str, ...], seed: int) -> Task:
    return build_task(load_config(None, [*recipe, "training.validate_every=0"], seed))


def ours(task: Task) -> TargetNetwork:
    task = replace(task, source=build_source(task.config))
    network, pools = task.new_network(), Pools()
    for stage in task.config.stages:
        fit(make_stage(stage, task, network, pools=pools))
    return network


def plain(task: Task, channels_last: bool) -> TargetNetwork:
    pair = SourcePair(task, channels_last=channels_last)
    network = task.new_network()
    for stage in task.config.stages:
        training = Training(LOOPS[stage](task, pair, network))
        training.run(training.loop.options.steps)
        network = training.evaluated
    return network


@cache
def check(recipe: tuple[str, ...], channels_last: bool) -> None:
    """Check that a plain loop's step equals ours on the same batch."""
    task = task_of(recipe, SEEDS[0])
    pair = SourcePair(task, channels_last=channels_last)
    assert_same_images(task, pair)
    for stage in task.config.stages:
        assert_same_step(task, stage, pair)


def assert_reached(contender: str) -> None:
    """Once all seeds have run, check that they reach the first contender's accuracy, if that one ran."""
    first = next(iter(CONTENDERS))
    wanted, found = REACHED.get(first, []), REACHED[contender]
    if len(wanted) == len(found) == len(SEEDS):
        assert mean(found) >= mean(wanted) - MARGIN, (
            f"{contender}: {mean(found):.4f} over seeds {SEEDS}, {first}: {mean(wanted):.4f}"
        )


@pytest.mark.parametrize("contender", CONTENDERS)
def test_whole_training(benchmark: Any, contender: str) -> None:
    benchmark.group = GROUP
    recipe, channels_last = CONTENDERS[contender]
    tasks = [task_of(recipe, seed) for seed in SEEDS]
    if channels_last is not None:
        check(recipe, channels_last)
    reached = REACHED.setdefault(contender, [])
    first = len(reached)
    trained: list[TargetNetwork] = []

    def run() -> None:
        task = tasks[first + len(trained)]
        torch.manual_seed(task.config.seed)
        trained.append(ours(task) if channels_last is None else plain(task, channels_last))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        benchmark.pedantic(run, rounds=len(SEEDS))
    finally:
        torch.set_num_threads(before)
    for task, network in zip(tasks[first:], trained, strict=False):
        reached.append(accuracy(network, task, of="test"))
    benchmark.extra_info["test accuracy"] = round(mean(reached[first:]), 4)
    try:
        assert_reached(contender)
    except AssertionError:
        # pytest-benchmark then keeps no time of it.
        benchmark.has_error = True
        raise
