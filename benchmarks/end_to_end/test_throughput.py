"""Training steps of both stages on the default task, against the plain eager loop and USB's train step.

pytest benchmarks/end_to_end/test_throughput.py --benchmark-enable --benchmark-only

A round is the start and the first steps of a stage as in a run: optimizer, schedule, average, logging, and for ours the table
of conditions and the start of prefetching. No contender validates or writes checkpoints. Each contender's
step is compared with ours before it is timed (`agreement`), and its losses must be finite and go down.

Images are fresh at every step (`PLAIN`): the gain of a pool is not counted.

Contenders: "ours": the default settings; "ours, always ahead": engine.overlap = "always"; "eager": `eager_loop`; "eager
channels-last": the same in that layout; "compile": that one with generator, classifier and network through torch.compile,
where compiling is not timed. "P-SSL uda" is the stage with UDA's loss, as in `compare --methods uda`: "semilearn" is USB's UDA
(`usb`), fed by the eager loop's generator and views. Its step does less: the weak view shares the student's forward (ours
predicts it in eval mode, with one more forward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from statistics import mean
from typing import Any

import pytest
import torch
import usb
from agreement import assert_same_images, assert_same_step
from eager_loop import LOOPS, PLAIN, SourcePair
from eager_training import Training

from ptgm_fast.config import RunConfig, load_config, with_method
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.context import Context
from ptgm_fast.training.loop import fit

pytest.importorskip("kornia")

# Steps of a round, and rounds.
STEPS, ROUNDS = 20, 3
# By contender, its settings: the engine decides by itself, or always prefetches.
OURS = {"ours": [], "ours, always ahead": ["engine.overlap=always"]}
LAYOUTS = {
    "eager": {},
    "eager channels-last": {"channels_last": True},
    "compile": {"channels_last": True, "compiled": True},
}
CASES = [
    *((s, None, n) for s in ("pp", "p-ssl") for n in (*OURS, *LAYOUTS)),
    *(("p-ssl", "uda", n) for n in ("ours", "eager", "eager channels-last", "semilearn")),
]


@cache
def default_task() -> Task:
    return build_task(config())


def config(*overrides: str, method: str | None = None) -> RunConfig:
    steps = [
        *(
            f"{stage}.{what}"
            for stage in ("pp", "training")
            for what in (f"steps={STEPS}", "log_every=5")
        ),
        "data.validation_per_class=0",
    ]
    loaded = load_config(None, [*PLAIN, *steps, *overrides])
    return with_method(loaded, f"pp+{method}") if method else loaded


def task_of(contender: str, method: str | None) -> Task:
    return replace(default_task(), config=config(*OURS.get(contender, []), method=method))


def ours(task: Task, stage: str) -> Callable[[], list[float]]:
    """A run of the stage from the task's fresh network; it returns the logged losses."""

    def run() -> list[float]:
        logged: list[float] = []
        context = Context(on_metrics=lambda s, step, steps, m: logged.append(m["loss"]))
        fit(make_stage(stage, task, task.new_network()), context)
        return logged

    return run


def eager(task: Task, stage: str, pair: SourcePair) -> Callable[[], list[float]]:
    def run() -> list[float]:
        training = Training(LOOPS[stage](task, pair, task.new_network()))
        training.run(STEPS)
        return torch.stack(training.losses).tolist()

    return run


def semilearn(task: Task, stage: str, pair: SourcePair) -> Callable[[], list[float]]:
    """USB's loop over batches that the eager loop makes on demand."""

    def run() -> list[float]:
        loop = LOOPS[stage](task, pair, task.new_network())
        made = usb.algorithm(loop.network, task.config.training, task.config.p_ssl)
        losses: list[float] = []
        usb.train_on(made, (loop.batch() for _ in range(STEPS)), losses)
        return losses

    return run


def check(task: Task, stage: str, contender: str, pair: SourcePair) -> None:
    if contender == "semilearn":
        # Here only the step's loss can be compared, on given logits; tests/benchmarks/test_usb.py compares the whole step,
        # with a stand-in for the network. Its T has no effect in a step.
        weak, strong = 3 * torch.randn(2, task.config.p_ssl.batch_size, task.num_classes)
        usb.assert_same_loss("uda", weak, strong, 1.0, task.config.p_ssl.threshold)
        return
    assert_same_images(task, pair)
    assert_same_step(task, stage, pair)


def goes_down(losses: Sequence[float]) -> bool:
    third = max(1, len(losses) // 3)
    return mean(losses[-third:]) < mean(losses[:third])


@cache
def ready(
    stage: str, method: str | None, contender: str, threads: int
) -> tuple[Task, Callable[[], list[float]], list[float]]:
    """The contender's run, checked and warmed up, for all of its rounds: the task, the run, and the losses of one run.

    threads: torch's number of threads; code is compiled for it.
    """
    torch.manual_seed(0)
    task = task_of(contender, method)
    pair = SourcePair(task, **LAYOUTS.get(contender, {}))
    check(task, stage, contender, pair)
    makers: dict[str, Callable[..., Any]] = {"semilearn": semilearn} | dict.fromkeys(LAYOUTS, eager)
    run = ours(task, stage) if contender in OURS else makers[contender](task, stage, pair)
    # Warms up, compiles, and shows that the steps learn.
    losses = run()
    assert torch.tensor(losses).isfinite().all()
    assert goes_down(losses), losses
    return task, run, losses


@pytest.mark.parametrize(
    ("stage", "method", "contender"), CASES, ids=[", ".join(filter(None, case)) for case in CASES]
)
def test_steps(
    benchmark: Any, threads: int, stage: str, method: str | None, contender: str
) -> None:
    """Time a number of float32 training steps; also records steps/s and images/s (through the target network)."""
    if threads == 1 and (contender in ("compile", "ours, always ahead") or method):
        pytest.skip("two threads only")
    name = {"pp": "PP", "p-ssl": "P-SSL"}[stage] + (f" {method}" if method else "")
    benchmark.group = f"{name}, {STEPS} steps, {threads} threads"
    task, run, losses = ready(stage, method, contender, threads)
    benchmark.pedantic(run, rounds=ROUNDS)
    seconds = benchmark.stats.stats.median
    images = make_stage(stage, task, task.new_network()).images_per_step
    benchmark.extra_info["steps/s"] = round(STEPS / seconds, 2)
    benchmark.extra_info["images/s"] = round(STEPS * images / seconds)
    benchmark.extra_info["loss, first and last"] = [round(losses[0], 3), round(losses[-1], 3)]
