"""Estimate the cost of `synthesize` by measuring a few blocks, without writing anything."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ptgm_fast.config import RunConfig
from ptgm_fast.data.images import encode_png
from ptgm_fast.errors import UserError
from ptgm_fast.runs.pools import conditioned_recipe, uniform_recipe
from ptgm_fast.runs.synthesize import open_format
from ptgm_fast.sampling import BLOCK

MEASURED_BLOCKS = 3


@dataclass(frozen=True)
class Estimate:
    """images_per_second: of one process, including encoding but not writing. disk_bytes: for all images. memory_bytes:
    peak memory of the measuring process (on a GPU: GPU memory), plus on a CPU a part waiting to be written."""

    device: str
    image_size: int
    measured: int
    images_per_second: float
    disk_bytes: int
    memory_bytes: int


def estimate(
    config: RunConfig, count: int, *, conditioned: bool = False, format: str = "folder"
) -> Estimate:
    """Make one warm-up block, then time a few. Writes nothing. Raises UserError as `synthesize` does."""
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    made = open_format(config, count, Path("never written"), conditioned=conditioned, format=format)
    source, task = made.source, made.task
    recipe = conditioned_recipe(task) if task else uniform_recipe(config, source)
    on_gpu = source.device.type == "cuda"
    recipe.block(0)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began, encoded = time.perf_counter(), 0
    for block in range(MEASURED_BLOCKS):
        images = recipe.block(block)[0].cpu()
        encoded += (
            images.nbytes if format == "pool" else sum(len(encode_png(image)) for image in images)
        )
    seconds = time.perf_counter() - began
    card, measured = source.generator.card, MEASURED_BLOCKS * BLOCK
    per_image = encoded / measured
    # Headers and labels: 8 bytes in an .npy file, three 512-byte headers and padding in a tar, a file system block.
    per_image += {"pool": 8, "webdataset": 5 * 512, "folder": 2048}[format]
    memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    part = made.parts.size * card.channels * card.image_size**2
    return Estimate(
        device=str(source.device),
        image_size=card.image_size,
        measured=measured,
        images_per_second=measured / seconds,
        disk_bytes=round(count * per_image),
        memory_bytes=memory + (0 if on_gpu else 2 * part),
    )
