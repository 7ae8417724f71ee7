#!/usr/bin/env python3
"""Measure settings on validation images, paired by seed: the tables of docs/method.md and docs/tuning.md.

    python scripts/try_settings.py losses --out losses.jsonl

The tables: `losses`, what each loss on pseudo samples adds to PP + soft targets; `pp` and `p-ssl`, budgets and accelerations
of each stage; `resnet18`, the default against the recipe of 0.1.0 with a second network on a second target. For each target of
the panel and each seed, PP is trained once for all settings that share it, and each setting's target stage starts from its weights.
As many images as the panel tests on validate here, and as many as it validates on are left out; seeds from 1000 on give new
splits. The last weights are evaluated. Each training adds a line to --out, with the CPU seconds of each stage (one thread:
OMP_NUM_THREADS=1); trainings that already have a line are skipped. Seeds begun on one machine should be ended there, since
another processor rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast.config import load_config, with_method
from ptgm_fast.config.run import RunConfig
from ptgm_fast.runs.panel import LABELS_PER_CLASS, TARGETS
from ptgm_fast.runs.pools import Pools
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.evaluation import evaluate
from ptgm_fast.training.loop import fit
from ptgm_fast.training.pp import PseudoBatch, PseudoPreTraining
from ptgm_fast.training.stage import Stage


def smoothed(stage: PseudoPreTraining, step: int, batch: PseudoBatch, *_: Any) -> dict[str, Tensor]:
    """PP's loss with label smoothing 0.1."""
    logits = stage.network.heads["source"](stage.features(batch.inputs))
    return {"loss": F.cross_entropy(logits, batch.labels, label_smoothing=0.1)}


def smooth_labels(stage: Stage) -> None:
    stage.losses = partial(smoothed, stage)  # type: ignore[method-assign]


class Muon(torch.optim.SGD):
    """torch.optim.Muon for weights of two and more dimensions, as matrices of one row for each output; SGD for the others.

    Muon's learning rate is a fifth of SGD's, 0.02 for PP's 0.1, and follows the same schedule.
    """

    def __init__(self, network: nn.Module, options: Any) -> None:
        weights = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        super().__init__(others, lr=options.lr, momentum=options.momentum, nesterov=True)
        # Which order the columns have changes nothing; the matrix must share the weight's memory.
        self.pairs = [(weight, nn.Parameter(matrix(weight.data))) for weight in weights]
        assert all(a.data_ptr() == b.data_ptr() for a, b in self.pairs)
        self.muon = torch.optim.Muon(
            [m for _, m in self.pairs], lr=options.lr / 5, weight_decay=options.weight_decay
        )

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        for weight, its_matrix in self.pairs:
            its_matrix.grad = None if weight.grad is None else matrix(weight.grad)
        self.muon.param_groups[0]["lr"] = self.param_groups[0]["lr"] / 5
        self.muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight, _ in self.pairs:
            weight.grad = None


def matrix(weight: Tensor) -> Tensor:
    """[outputs, ...] as [outputs, columns], channels last."""
    return weight.movedim(1, -1).flatten(1)


def use_muon(stage: Stage) -> None:
    stage.optimizer_of = Muon  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Table:
    """Settings (overrides of the config) against a baseline, on some targets. method: theirs; of_baseline: the baseline's."""

    targets: tuple[str, ...]
    baseline: str
    settings: dict[str, list[str]]
    method: str = "pp+p-ssl"
    of_baseline: str = "pp+p-ssl"
    labels_per_class: int = 10
    # Overrides for all, and what is changed in PP beside its settings.
    common: tuple[str, ...] = ()
    changes: dict[str, Callable[[Stage], None]] | None = None


FRESH = ["synthesis.images=fresh", "pp.resolution=[[1.0,1.0]]"]
OF_0_1 = [
    *FRESH,
    "pp.steps=600",
    "training.batch_size=64",
    "synthesis.images_per_target=fresh",
    "p_ssl.source_temperature=1.0",
    "precision=float32",
]
TABLES = {
    "losses": Table(
        targets=("greek", "handwritten", "uci"),
        baseline="pp+soft-target",
        of_baseline="pp+soft-target",
        labels_per_class=LABELS_PER_CLASS,
        common=("synthesis.images_per_target=fresh",),
        settings={
            "source-head, T 1": ["p_ssl.source_temperature=1.0"],
            "source-head, T 2": [],
            'source-head, T 2, filter = "confidence"': ["p_ssl.filter=confidence"],
            "source-head, T 4": ["p_ssl.source_temperature=4.0"],
            "source-head, T 4, weight 2": ["p_ssl.source_temperature=4.0", "p_ssl.weight=2.0"],
            "source-head, T 4, weight 4": ["p_ssl.source_temperature=4.0", "p_ssl.weight=4.0"],
            "source-head and feature-mse": ['p_ssl.method=["source-head","feature-mse"]'],
            "source-head and mean-teacher, weights 1 and 5": [
                'p_ssl.method=["source-head","mean-teacher"]',
                "p_ssl.weight=[1.0,5.0]",
            ],
            "softmatch, weight 0.3": ["p_ssl.method=softmatch", "p_ssl.weight=0.3"],
            "feature-mse": ["p_ssl.method=feature-mse"],
            "mean-teacher, weight 5": ["p_ssl.method=mean-teacher", "p_ssl.weight=5.0"],
            "adamatch, weight 0.3": [
                "p_ssl.method=adamatch",
                "p_ssl.weight=0.3",
                "p_ssl.batch_norm=concat",
            ],
            "freematch, weight 0.3": ["p_ssl.method=freematch", "p_ssl.weight=0.3"],
            "flexmatch, weight 0.3": ["p_ssl.method=flexmatch", "p_ssl.weight=0.3"],
            "uda": ["p_ssl.method=uda"],
            'uda, alignment = "uniform"': ["p_ssl.method=uda", "p_ssl.alignment=uniform"],
        },
    ),
    "pp": Table(
        targets=("handwritten",),
        method="pp+soft-target",
        of_baseline="pp+soft-target",
        baseline="300 steps, 60 % at half the side",
        settings={
            "600 steps on whole images": [*FRESH, "pp.steps=600"],
            "300 steps on whole images": ["pp.resolution=[[1.0,1.0]]"],
            "label smoothing 0.1": [],
            "moving average of the weights, decay 0.98": ["pp.ema_decay=0.98"],
            "peak learning rate 0.2": ["pp.lr=0.2"],
            "Muon": [],
        },
        changes={"label smoothing 0.1": smooth_labels, "Muon": use_muon},
    ),
    "p-ssl": Table(
        targets=("handwritten",),
        baseline="300 steps, 32 fresh pseudo images a step",
        common=("synthesis.images_per_target=fresh",),
        settings={
            "a pool of 1/2": ["synthesis.images_per_target=1/2"],
            "a pool of 1/4": ["synthesis.images_per_target=1/4"],
            "16 pseudo images a step": ["p_ssl.batch_size=16"],
            "200 steps, with a pool of 1/4": [
                "training.steps=200",
                "synthesis.images_per_target=1/4",
            ],
            "200 steps": ["training.steps=200"],
        },
    ),
    "resnet18": Table(
        targets=("greek",),
        baseline="the recipe of 0.1.0",
        settings={"the recipe of 0.1.0": OF_0_1, "the default": []},
        common=("target.network=timm:resnet18", "data.image_size=32"),
    ),
}


def config_of(table: Table, target: str, seed: int, name: str) -> RunConfig:
    images = TARGETS[target]
    split = [
        f"data.images={images.images}",
        f"data.labels_per_class={table.labels_per_class}",
        f"data.validation_per_class={images.test_per_class}",
        f"data.test_per_class={images.validation_per_class}",
        "training.validate_every=0",
    ]
    method = table.of_baseline if name == table.baseline else table.method
    overrides = [*split, *table.common, *table.settings.get(name, [])]
    return with_method(load_config(None, overrides, seed), method)


def trained(stage: Stage) -> float:
    """Train the stage; return its CPU seconds."""
    optimizer = getattr(stage, "optimizer_of", None)
    began = time.process_time()
    if optimizer:
        with patch("ptgm_fast.training.state.build_optimizer", optimizer):
            fit(stage)
    else:
        fit(stage)
    return time.process_time() - began


def measured(table: Table, target: str, seed: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Train the wanted settings; yield the line of each."""
    starts: dict[str, tuple[dict[str, Tensor], float]] = {}
    task: Task | None = None
    for name in wanted:
        config = config_of(table, target, seed, name)
        task = build_task(config, like=task)
        network, change = task.new_network(), (table.changes or {}).get(name)
        kind = repr((config.pp, config.synthesis.images, config.precision, change))
        if kind not in starts:
            # Also what the making of a pool takes.
            stage = make_stage("pp", task, network, pools=Pools())
            if change:
                change(stage)
            seconds = trained(stage)
            weights = {key: value.clone() for key, value in network.state_dict().items()}
            starts[kind] = weights, seconds
        weights, seconds = starts[kind]
        network.load_state_dict(weights)
        stage_seconds = trained(make_stage(config.stages[1], task, network, pools=Pools()))
        images = task.data.validation
        found = evaluate(network, task.data.normalizer(task.device), images.images, images.labels)
        yield {
            "target": target,
            "seed": seed,
            "name": name,
            "accuracy": found.accuracy,
            "cpu_seconds": [round(seconds, 1), round(stage_seconds, 1)],
        }


def printed(table: Table, rows: list[dict[str, Any]]) -> str:
    """Difference in points from the baseline with the same target and seed: mean ± standard error (number of seeds)."""
    found = {(row["target"], row["seed"], row["name"]): row for row in rows}
    titles = [TARGETS[t].title for t in table.targets]
    lines = ["| settings | " + " | ".join(titles) + " | CPU seconds of each stage |"]
    lines.append("|---" + "|---:" * (len(titles) + 1) + "|")
    for name in dict.fromkeys((table.baseline, *table.settings)):
        cells = []
        for target in table.targets:
            points = [
                100 * (row["accuracy"] - found[target, seed, table.baseline]["accuracy"])
                for (its, seed, its_name), row in sorted(found.items())
                if (its, its_name) == (target, name) and (target, seed, table.baseline) in found
            ]
            error = f" ± {stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
            cells.append(f"{mean(points):+.2f}{error} ({len(points)})" if points else "")
        took = [r["cpu_seconds"] for r in rows if r["name"] == name and "cpu_seconds" in r]
        cells.append(", ".join(f"{mean(stage):.1f}" for stage in zip(*took, strict=True)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), help="default: the table's")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1000, 1001, 1002])
    parser.add_argument(
        "--out", type=Path, required=True, help="file that gets a line per training"
    )
    asked = parser.parse_args()

    table = TABLES[asked.table]
    lines = asked.out.read_text().splitlines() if asked.out.is_file() else []
    rows = [json.loads(line) for line in lines]
    for seed in asked.seeds:
        for target in asked.targets or table.targets:
            done = {r["name"] for r in rows if (r["target"], r["seed"]) == (target, seed)}
            names = dict.fromkeys((table.baseline, *table.settings))
            for row in measured(table, target, seed, [name for name in names if name not in done]):
                rows.append(row)
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(printed(table, rows))


if __name__ == "__main__":
    main()
