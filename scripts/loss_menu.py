#!/usr/bin/env python3
"""Measure what each loss on pseudo samples adds to PP + soft targets, on validation images: the tables of docs/method.md.

    python scripts/loss_menu.py greek handwritten uci --seeds 1000 1001 1002 --out menu.jsonl

For each target of the panel and each seed, PP is trained once, and each setting's target stage starts from its weights. As many
images as the panel tests on validate here, and as many as it validates on are left out; seeds from 1000 on give new splits.
The last weights are evaluated. Each training adds a line to --out; trainings that already have a line are skipped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ptgm_fast.config import load_config, with_method
from ptgm_fast.config.run import RunConfig
from ptgm_fast.runs.panel import LABELS_PER_CLASS, TARGETS
from ptgm_fast.runs.pools import Pools
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.evaluation import evaluate
from ptgm_fast.training.loop import fit

BASELINE = "pp+soft-target"
# Overrides of the config of pp+p-ssl, all with soft targets on the labelled images.
SETTINGS: dict[str, list[str]] = {
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
}


def config_of(target: str, seed: int, overrides: list[str], method: str) -> RunConfig:
    images = TARGETS[target]
    split = [
        f"data.images={images.images}",
        f"data.labels_per_class={LABELS_PER_CLASS}",
        f"data.validation_per_class={images.test_per_class}",
        f"data.test_per_class={images.validation_per_class}",
        "training.validate_every=0",
        "synthesis.images_per_target=fresh",
    ]
    return with_method(load_config(None, [*split, *overrides], seed), method)


def accuracies(target: str, seed: int, wanted: list[str]) -> Any:
    """Train the wanted settings; yield the name and validation accuracy of each."""
    start: dict[str, Any] = {}
    task: Task | None = None
    for name in wanted:
        method = name if name == BASELINE else "pp+p-ssl"
        config = config_of(target, seed, SETTINGS.get(name, []), method)
        task = build_task(config, like=task)
        network = task.new_network()
        if not start:
            fit(make_stage("pp", task, network, pools=Pools()))
            start = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(start)
        fit(make_stage(config.stages[1], task, network))
        images = task.data.validation
        found = evaluate(network, task.data.normalizer(task.device), images.images, images.labels)
        yield name, found.accuracy


def table(rows: list[dict[str, Any]], targets: list[str]) -> str:
    """Difference in points from the baseline with the same target and seed: mean ± standard error (number of seeds)."""
    found = {(row["target"], row["seed"], row["name"]): row["accuracy"] for row in rows}
    lines = ["| loss | " + " | ".join(TARGETS[t].title for t in targets) + " |"]
    lines.append("|---" + "|---:" * len(targets) + "|")
    for name in SETTINGS:
        cells = []
        for target in targets:
            points = [
                100 * (value - found[target, seed, BASELINE])
                for (its, seed, row), value in sorted(found.items())
                if its == target and row == name
            ]
            error = f" ± {stdev(points) / len(points) ** 0.5:.1f}" if len(points) > 1 else ""
            cells.append(f"{mean(points):+.1f}{error} ({len(points)})" if points else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", choices=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1000, 1001, 1002])
    parser.add_argument(
        "--out", type=Path, required=True, help="file that gets a line per training"
    )
    asked = parser.parse_args()

    lines = asked.out.read_text().splitlines() if asked.out.is_file() else []
    rows = [json.loads(line) for line in lines]
    for seed in asked.seeds:
        for target in asked.targets:
            done = {r["name"] for r in rows if (r["target"], r["seed"]) == (target, seed)}
            wanted = [name for name in (BASELINE, *SETTINGS) if name not in done]
            for name, accuracy in accuracies(target, seed, wanted):
                rows.append({"target": target, "seed": seed, "name": name, "accuracy": accuracy})
                with asked.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows, asked.targets))


if __name__ == "__main__":
    main()
