"""Find how small a pool may be without loss: validation accuracy and seconds with fresh images and with pools, over seeds.

python scripts/pool_table.py [CONFIG.toml] [--seeds 0,1,2,3,4] [--method pp+soft-target] [--parts 4,8,16,32] [--set KEY=VALUE ...]

A part of 8 is a pool with an eighth of the images that the stage serves: for PP, and for P-SSL if the method has it. Only validation
images are used: the choice of a default must not see the test images. Use many: --set data.validation_per_class=400.
Seconds are those of the stages, including making the pools; sizes take turns within a seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ptgm_fast.config import RunConfig, load_config, with_method
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.tune import measure

FRESH = 1


def with_pool(config: RunConfig, part: int, num_targets: int) -> RunConfig:
    """The config with pools of 1/part of the images that its stages serve; with FRESH, without pools."""
    if part == FRESH:
        sizes: dict[str, int | str] = {"images": "fresh", "images_per_target": "fresh"}
    else:
        served = config.training.steps * config.p_ssl.batch_size
        sizes = {
            "images": config.pp.steps * config.pp.batch_size // part,
            "images_per_target": max(2, round(served / part / num_targets)),
        }
    synthesis = config.synthesis.model_copy(update=sizes)
    return config.model_copy(update={"synthesis": synthesis})


def error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--method", default="pp+soft-target")
    parser.add_argument("--parts", default="4,8,16,32")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    given = parser.parse_args(arguments)
    parts = [FRESH, *map(int, given.parts.split(","))]
    rows: dict[int, list[tuple[float, float, list[float]]]] = {part: [] for part in parts}
    task = None
    for seed in map(int, given.seeds.split(",")):
        config = with_method(load_config(given.config, given.settings, seed), given.method)
        task = build_task(config, task)
        for part in parts:
            chosen = with_pool(task.config, part, len(task.data.train))
            rows[part].append(measure(replace(task, config=chosen)))
            accuracy, seconds, _ = rows[part][-1]
            print(f"seed {seed} {name(part)}: {accuracy:.4f}, {seconds:.1f} s", file=sys.stderr)
    stages = task.config.stages
    print(f"{task.config.target.network}, {given.method}, seeds {given.seeds}, {task.device}\n")
    print(f"| pool | validation, % | against fresh | seconds | {' | '.join(stages)} | faster |")
    print("|---|" + "---:|" * (len(stages) + 4))
    fresh = rows[FRESH]
    for part, measured in rows.items():
        accuracies = [100 * row[0] for row in measured]
        gains = [100 * (a[0] - b[0]) for a, b in zip(measured, fresh, strict=True)]
        ratios = [b[1] / a[1] for a, b in zip(measured, fresh, strict=True)]
        each = " | ".join(
            f"{statistics.median(row[2][i] for row in measured):.1f}" for i in range(len(stages))
        )
        print(
            f"| {name(part)} | {statistics.fmean(accuracies):.2f} ± {error(accuracies):.2f} | "
            f"{statistics.fmean(gains):+.2f} ± {error(gains):.2f} | "
            f"{statistics.median(row[1] for row in measured):.1f} | {each} | {statistics.median(ratios):.2f}x |"
        )


def name(part: int) -> str:
    return "fresh" if part == FRESH else f"1/{part}"


if __name__ == "__main__":
    main(sys.argv[1:])
