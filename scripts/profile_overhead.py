"""Measure what --profile costs: the default task with and without it, in turn, in one process.

python scripts/profile_overhead.py [--rounds 5] [--steps 60]

Each round trains once with and once without it, `steps` steps per stage, in an order that alternates between rounds. The result
is the median over rounds of the ratio of CPU seconds (of all threads, including the sampler's), which other work on the
machine disturbs less than wall time; the ratio of wall times is also printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from ptgm_fast.config import load_config
from ptgm_fast.runs.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    steps = arguments.steps
    config = load_config(None, [f"pp.steps={steps}", f"training.steps={steps}"])
    ratios: dict[str, list[float]] = {"processor": [], "clock": []}
    with tempfile.TemporaryDirectory() as folder:
        # The first run pays for lazy loading and is not counted.
        train(config, Path(folder) / "first", profile=True)
        for number in range(arguments.rounds):
            spent: dict[bool, tuple[float, float]] = {}
            for profiled in (True, False) if number % 2 else (False, True):
                began = time.process_time(), time.perf_counter()
                train(config, Path(folder) / f"{number}-{profiled}", profile=profiled)
                spent[profiled] = time.process_time() - began[0], time.perf_counter() - began[1]
            for place, name in enumerate(ratios):
                ratios[name].append(spent[True][place] / spent[False][place])
            print(", ".join(f"{name} {values[-1]:.4f}" for name, values in ratios.items()))
    for name, values in ratios.items():
        print(
            f"with --profile / without, by {name}: median {statistics.median(values):.4f} "
            f"({min(values):.4f} to {max(values):.4f}, {len(values)} rounds)"
        )


if __name__ == "__main__":
    main()
