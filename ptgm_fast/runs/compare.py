"""Compare methods on the same data, network, number of target steps and seeds; report whether the pseudo data helped."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptgm_fast.config import RunConfig, config_to_toml, with_method
from ptgm_fast.config.run import NetworkConfig
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork
from ptgm_fast.records import read_json
from ptgm_fast.runs import figures
from ptgm_fast.runs.artifacts import COMPARISON, Method, read_comparison, read_summary
from ptgm_fast.runs.check import check_at_start
from ptgm_fast.runs.distance import distances
from ptgm_fast.runs.folder import ASKED, RunFolder
from ptgm_fast.runs.gains import price, verdicts
from ptgm_fast.runs.own_classifier import train_classifier
from ptgm_fast.runs.plots import save
from ptgm_fast.runs.pools import POOL, Pools
from ptgm_fast.runs.task import Task, build_task, versions
from ptgm_fast.runs.train import make_stage, make_stages, run_stages, summarize
from ptgm_fast.runs.worth import BASELINES_FOLDER, THIS_RUN
from ptgm_fast.training.context import Context
from ptgm_fast.training.loop import StageResult

DEFAULT_METHODS = (
    "scratch",
    "logit-matching",
    "soft-target",
    "pp",
    "pp+soft-target",
    "pp+uda",
    "p-ssl",
    "pp+p-ssl",
)
# Trained in addition to a run, without pseudo images: plain training, and the better kind of distillation.
BASELINES = ("scratch", "soft-target")


@dataclass(frozen=True)
class Asked:
    """What defines the rows of a comparison, besides its config.

    networks: target networks instead of the config's; with several, a row is METHOD @ NETWORK. share_pool: the pool of
    uniform labels is made once, with the first seed, for all. panel: compare on each target of the panel, see `runs.panel`.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    networks: tuple[str, ...] = ()
    share_pool: bool = False
    panel: bool = False


@dataclass(frozen=True)
class Row:
    """One method on one seed."""

    method: str
    seed: int
    test_accuracy: float
    val_accuracy: float | None
    ece: float
    seconds: float
    images_synthesized: int
    images_served: int = 0
    seconds_saved: float = 0.0


def compare(
    config: RunConfig,
    asked: Asked,
    out: Path | str,
    *,
    resume: bool = False,
    context: Context | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Run every method on every seed in the folder `out`; return the content of compare.json.

    Pseudo pre-training runs once per seed and is shared by the methods that use it; its seconds and images count for each
    of them. Pools (`config.synthesis`) are made once per seed, for all methods and networks. resume: continue a stopped
    comparison in `out`; finished rows are kept, and the others come out as they would have without the stop. Raises
    ValueError for an unknown method, UserError as `train` does, and `Interrupted`.
    """
    out, methods, seeds = Path(out), asked.methods, asked.seeds
    context = context or Context()
    task = fitting_task(config, asked, out, context)
    targets = _configs(config, asked)
    networks = [target.target.network for target in targets]
    with RunFolder.writing(out, resume=resume) as folder:
        if not resume:
            folder.write_json(folder.path / ASKED, asdict(asked))
            folder.write_config(config_to_toml(config))
        train_classifier(task.source, config, out, context)
        check_at_start(task, folder.path, context.on_notice)
        # This drops a line cut off by a kill.
        finished = [Row(**record) for record in folder.read_metrics()]
        folder.write_metrics([vars(row) for row in finished])
        rows: list[Row] = []
        distance: list[Tensor] = []
        uniform = Pools(out / POOL) if asked.share_pool else None
        for seed in seeds:
            if seed != task.config.seed:
                task = build_task(targets[0].model_copy(update={"seed": seed}), task)
            distance.append(distances(task))
            pools = Pools(out / POOL / f"seed-{seed}", uniform=uniform)
            # Methods with additional images need a separate pool.
            further = Pools(out / POOL / f"seed-{seed}-real", uniform=pools)
            pre_trained: dict[str, tuple[TargetNetwork, list[StageResult]]] = {}
            for target, method in itertools.product(targets, methods):
                name = target.target.network
                label = f"{method} @ {name}" if len(networks) > 1 else method
                if there := [r for r in finished if (r.method, r.seed) == (label, seed)]:
                    rows += there
                    continue
                settings = with_method(target.model_copy(update={"seed": seed}), method)
                chosen = _task_of(settings, task)
                network, done = chosen.new_network(), []
                if chosen.config.stages[0] == "pp":
                    if name not in pre_trained:
                        stage = make_stage("pp", chosen, network, pools=pools)
                        pre_trained[name] = network, run_stages([stage], context)
                    network, done = copy.deepcopy(pre_trained[name][0]), pre_trained[name][1]
                own = pools if settings.data == config.data else further
                row = row_of(label, _run(chosen, network, context, done, own))
                rows.append(row)
                folder.append_metrics(vars(row))
                on_row(row)
        judge = partial(verdicts, networks=networks)
        return _write_report(task, rows, judge, folder, torch.cat(distance))


def fitting_task(
    config: RunConfig, asked: Asked, out: Path, context: Context, like: Task | None = None
) -> Task:
    """Check every method and network; return the task of the last network and the first seed.

    Raises the errors that `compare` would, before the folder `out` exists: a network that does not fit, or a pool that is
    too small or was made for something else. like: see `build_task`.
    """
    for method in asked.methods:
        with_method(config, method)
    first, *others = _configs(config, asked)
    task = build_task(first, like, on_notice=context.on_notice, on_images=context.on_images)
    for target in (first, *others):
        task = build_task(target, task)
        for method in asked.methods:
            chosen = _task_of(with_method(target, method), task)
            make_stages(chosen, chosen.new_network(), None, Pools(out / POOL))
    return task


def _configs(config: RunConfig, asked: Asked) -> list[RunConfig]:
    """The config for each target network, with the first seed."""
    return [
        config.model_copy(update={"target": NetworkConfig(network=n), "seed": asked.seeds[0]})
        for n in asked.networks or (config.target.network,)
    ]


def asked_of(out: Path) -> Asked:
    """The `Asked` of the comparison in the folder `out`. Raises UserError if there is none."""
    again = "There is no comparison to resume here; start one without --resume"
    given = read_json(RunFolder.reopen(out).path / ASKED, again=again)
    try:
        methods, seeds, networks = (tuple(given[key]) for key in ("methods", "seeds", "networks"))
        return Asked(methods, seeds, networks, bool(given["share_pool"]), bool(given.get("panel")))
    except (KeyError, TypeError):
        raise UserError(
            f"{str(out / ASKED)!r} does not have the format of this version. {again}"
        ) from None


def _task_of(settings: RunConfig, task: Task) -> Task:
    """The task of a row: the task of its seed, split again only if the row uses additional images."""
    if settings.data == task.config.data:
        return replace(task, config=settings)
    return build_task(settings, task)


def _run(
    task: Task,
    network: TargetNetwork,
    context: Context,
    done: Sequence[StageResult] = (),
    pools: Pools | None = None,
) -> dict[str, Any]:
    """Run the stages of the task that are not `done`, and summarize the network."""
    results = run_stages(make_stages(task, network, pools=pools), context, results=done)
    return summarize(task, network, results)


def against_baselines(
    config: RunConfig,
    out: Path,
    *,
    task: Task | None = None,
    context: Context | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Train the `BASELINES` on the seed of the finished run of `config` in the folder `out`, and compare them with it.

    Writes out/baselines, a folder like that of `compare`, with the run as an additional row (`THIS_RUN`), and returns its
    report. A report that already exists is returned as it is; an unfinished one is started over. task: the task that the
    run loaded; if None, it is loaded again.
    """
    context = context or Context()
    path = out / BASELINES_FOLDER
    if (path / COMPARISON).is_file():
        return read_comparison(path)
    task = task or build_task(config, on_notice=context.on_notice, on_images=context.on_images)
    train_classifier(task.source, config, out, context)
    with RunFolder.writing(path, resume=(path / "config.toml").exists()) as folder:
        folder.write_config(config_to_toml(config))
        folder.write_metrics([])
        rows = []
        for method in BASELINES:
            chosen = replace(task, config=with_method(config, method))
            rows.append(row_of(method, _run(chosen, task.new_network(), context)))
            folder.append_metrics(vars(rows[-1]))
            on_row(rows[-1])
        rows.append(row_of(THIS_RUN, read_summary(out)))
        folder.append_metrics(vars(rows[-1]))
        return _write_report(task, rows, _gains, folder, distances(task))


def row_of(method: str, summary: Mapping[str, Any]) -> Row:
    """Make a row from a run's summary."""
    target, stages = summary["target"], summary["stages"].values()
    return Row(
        method=method,
        seed=summary["seed"],
        test_accuracy=target["test_accuracy"],
        val_accuracy=target["val_accuracy"],
        ece=target["ece"],
        seconds=sum(stage["seconds"] for stage in stages),
        images_synthesized=sum(stage["images_synthesized"] for stage in stages),
        images_served=sum(stage["images_served"] for stage in stages),
        seconds_saved=sum(stage["seconds_saved"] or 0.0 for stage in stages),
    )


def _write_report(
    task: Task,
    rows: Sequence[Row],
    judge: Callable[[Mapping[str, Mapping[str, Any]]], str],
    folder: RunFolder,
    distance: Tensor,
) -> dict[str, Any]:
    """Write compare.json and compare.png; return the content of compare.json."""
    config = task.config
    methods, seeds = (
        list(dict.fromkeys(values))
        for values in zip(*((r.method, r.seed) for r in rows), strict=True)
    )
    summaries = {method: _summary([r for r in rows if r.method == method]) for method in methods}
    report = {
        "task": config.task,
        "seeds": seeds,
        "device": str(task.device),
        "versions": versions(),
        "distance": float(distance.mean()),
        "methods": summaries,
        "verdict": judge(summaries),
    }
    folder.write_json(folder.path / COMPARISON, report)
    title = f"{config.task}: {config.data.labels_per_class} labels per class, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
    rows_drawn = {method: Method(**summary) for method, summary in summaries.items()}
    save(figures.comparison(rows_drawn, title), folder.path / "compare.png")
    return report


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    accuracies = [r.test_accuracy for r in rows]
    validated = [r.val_accuracy for r in rows if r.val_accuracy is not None]
    return {
        "test_accuracy": accuracies,
        "mean": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(rows) > 1 else 0.0,
        "val_accuracy": validated,
        "ece": statistics.fmean(r.ece for r in rows),
        "seconds": statistics.median(r.seconds for r in rows),
        "images_synthesized": rows[0].images_synthesized,
        "images_served": rows[0].images_served,
        "seconds_saved": statistics.median(r.seconds_saved for r in rows),
    }


def _gains(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: the run against each baseline, in points of test accuracy and seconds."""
    own, parts = methods[THIS_RUN], []
    for name in BASELINES:
        points = 100 * (own["test_accuracy"][0] - methods[name]["test_accuracy"][0])
        took = own["seconds"] - methods[name]["seconds"]
        parts.append(f"{points:+.1f} points against {name}{price(points, took)}")
    gains = "; ".join(parts)
    return f"This run: {gains}. One seed; `ptgm-fast compare --seeds 5` tells a gain from chance."
