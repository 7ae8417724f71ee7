"""Measure how fast a folder of photographs is decoded, with one worker and with several, in images/s.

python scripts/decode_speed.py [--count 10000] [--side 224] [--workers 1,2] [--rounds 1]

Writes --count JPEGs of 500x375 (quality 90, about 65 kB each) to a temporary folder, and decodes them to --side pixels with
`data.load`. The numbers of workers take turns, one round each, and must all give the same bytes. Set OMP_NUM_THREADS=1 to limit
torch's resize in the caller's thread to one core, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ptgm_fast import data
from ptgm_fast.sampling.recipe import digest_of

WIDTH, HEIGHT, CLASSES, DIFFERENT = 500, 375, 10, 200


def write_photographs(root: Path, count: int) -> None:
    """Write smooth colours with noise, as JPEGs of about the size of small photographs; pictures repeat after `DIFFERENT`."""
    rng = np.random.default_rng(0)
    files: list[bytes] = []
    for i in range(count):
        folder = root / f"class-{i % CLASSES}"
        folder.mkdir(exist_ok=True)
        file = folder / f"{i:06d}.jpg"
        if len(files) == DIFFERENT:
            file.write_bytes(files[i % DIFFERENT])
            continue
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, dtype=np.int64) + rng.integers(-12, 12, (HEIGHT, WIDTH, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        files.append(file.read_bytes())


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args(arguments)
    workers = [int(w) for w in given.workers.split(",")]
    rates: dict[int, list[float]] = {w: [] for w in workers}
    digests = set()
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), given.count)
        for _ in range(given.rounds):
            for number in workers:
                began = time.perf_counter()
                loaded = data.load(
                    f"folder:{name}", channels=3, image_size=given.side, workers=number
                )
                rates[number].append(given.count / (time.perf_counter() - began))
                digests.add(digest_of(loaded.images))
                del loaded
    assert len(digests) == 1, "the images depend on the number of workers"
    medians = {number: statistics.median(values) for number, values in rates.items()}
    first = medians[workers[0]]
    for number, rate in medians.items():
        print(f"{number} workers: {rate:,.0f} images/s, {rate / first:.2f}x of {workers[0]}")
    return medians


if __name__ == "__main__":
    main()
