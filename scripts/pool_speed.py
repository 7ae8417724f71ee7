"""Measure what a pool costs: writing it (on top of making it), opening a million images, reading them in constant memory.

python scripts/pool_speed.py [--images 1000000] [--made 20480] [--rounds 5]

Writing: the bundled generator's images go into memory and into a folder, in turn, each time into a new pool. Opening: a pool of
32x32 colour images of random bytes, about 3 GB for a million, in a temporary folder. Reading: random batches of 128, and the
process's memory that is not backed by a file (RssAnon), before and after.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ptgm_fast.config import load_config
from ptgm_fast.runs.task import build_source
from ptgm_fast.sampling import Recipe
from ptgm_fast.sampling.pool import folder_pool, memory_pool, open_pool, parts_of
from ptgm_fast.sampling.stores import file_names, npy_bytes


def writing(made: int, rounds: int, folder: Path) -> None:
    """Print the seconds for making `made` images in memory and on disk; each round does both."""
    recipe = Recipe(build_source(load_config(None)), seed=0)
    ratios = []
    for number in range(-1, rounds):
        seconds = []
        for pool in (memory_pool(recipe, made), folder_pool(recipe, made, folder / str(number))):
            began = time.perf_counter()
            for block in sorted(pool.begin()):
                pool.make(block)
            seconds.append(time.perf_counter() - began)
        if number >= 0:  # The first round warms up.
            ratios.append(seconds[1] / seconds[0])
            print(
                f"{made:,} images: {seconds[0]:.2f} s into memory, {seconds[1]:.2f} s into a folder"
            )
    print(f"a folder takes {statistics.median(ratios):.3f} times as long (median of {rounds})")


def big_pool(images: int, folder: Path) -> None:
    """Write a pool of random 32x32 colour images, in the form that `synthesize` writes."""
    law = dict(Recipe(build_source(load_config(None)), seed=0).law, channels=3, image_size=32)
    parts = parts_of(law, images, folder)
    parts.begin()
    rng = np.random.default_rng(0)
    for shard in range(parts.number):
        number = len(parts.range(shard))
        x = rng.integers(0, 256, (number, 3, 32, 32), dtype=np.uint8)
        y = rng.integers(0, 52, number)
        files = zip(file_names(shard), (x, y), strict=True)
        parts.write({name: npy_bytes(array) for name, array in files}, shard)
    parts.finish()


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def opening(folder: Path, rounds: int) -> None:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        pool = open_pool(folder)
        seconds.append(time.perf_counter() - began)
    print(
        f"{len(pool):,} images opened in {1e3 * statistics.median(seconds):.1f} ms (median of {rounds})"
    )
    generator = torch.Generator().manual_seed(0)
    pool.take(torch.arange(128))
    before, began, batches = anonymous_bytes(), time.perf_counter(), 2000
    for _ in range(batches):
        pool.take(torch.randint(len(pool), (128,), generator=generator))
    each = (time.perf_counter() - began) / batches
    grown = (anonymous_bytes() - before) / 2**20
    print(
        f"{batches:,} random batches of 128: {1e3 * each:.2f} ms each, memory grew by {grown:.1f} MiB"
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--made", type=int, default=20_480)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        big_pool(given.images, folder / "big")
        opening(folder / "big", given.rounds)
        writing(given.made, given.rounds, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
