"""Write labelled pseudo images to disk, in independent parts: an image folder, tar shards, or a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ptgm_fast.config import RunConfig
from ptgm_fast.config.run import is_trained_here
from ptgm_fast.errors import UserError
from ptgm_fast.runs.formats import FolderFormat, Format, PoolFormat, TarFormat
from ptgm_fast.runs.task import build_source, build_task
from ptgm_fast.training.distributed import ProcessGroup, own_device

FORMATS: dict[str, type[Format]] = {
    "folder": FolderFormat,
    "pool": PoolFormat,
    "webdataset": TarFormat,
}


def synthesize(
    config: RunConfig,
    count: int,
    out: Path,
    *,
    conditioned: bool = False,
    format: str = "folder",
    shard: tuple[int, int] = (1, 1),
    on_images: Callable[[int, int], None] = lambda done, total: None,
    on_notice: Callable[[str], None] = lambda message: None,
    group: ProcessGroup | None = None,
) -> dict[str, Any]:
    """Write `count` images to the folder `out`, or those that are still missing there.

    conditioned: False draws labels uniformly over the source classes; True makes each sample for the soft source label of
    a labelled target image (PCS) and gives it that image's class. format: see `runs.formats`. shard: (I, N) makes the I-th
    of N shares of the parts; whoever makes the last part finishes the folder. With several processes each makes one share,
    in a folder that all of them must see.

    The output is the same, bit for bit, however the work is shared and however often it is stopped. A second call makes
    what is missing or damaged and names it to on_notice, which also receives the notices of `train`. on_images(done,
    total) covers the process's own share.

    Returns the content of summary.json for an image folder, ``count`` and ``class_names`` for the other formats; with
    ``missing_parts`` and ``parts`` added while other shares are missing. Raises UserError as `train` does, and for a folder
    that contains anything else.
    """
    group = group or ProcessGroup()
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    if not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard takes I/N with I from 1 to N, got {shard[0]}/{shard[1]}")
    if shard[1] > 1 and group.size > 1:
        raise UserError("--shard and torchrun both divide the work: use only one of them")
    own_device(config.device, group)
    made = open_format(
        config, count, out, conditioned=conditioned, format=format, on_notice=on_notice
    )
    group.barrier()
    for name in group.from_first(made.begin):
        on_notice(f"{name} is missing or damaged")
    if not out.is_dir():
        raise UserError(
            f"{str(out)!r}, created by the first process, is not visible to process {group.rank}; "
            "--out must be on a file system shared by all machines"
        )
    parts = made.parts
    parts.begin()
    first, number = (ProcessGroup(shard[0] - 1, shard[1]) if shard[1] > 1 else group).share(
        parts.number
    )
    mine = range(first, first + number)
    todo = [part for part in mine if _to_do(made, part, on_notice)]
    total = sum(len(parts.range(part)) for part in mine)
    done = total - sum(len(parts.range(part)) for part in todo)
    on_images(done, total)
    for part in todo:
        made.write(part)
        done += len(parts.range(part))
        on_images(done, total)
    group.barrier()
    whole = group.from_first(made.finish)
    if whole is None:
        return {**made.summary, "missing_parts": parts.missing(), "parts": parts.number}
    return whole


def open_format(
    config: RunConfig,
    count: int,
    out: Path,
    *,
    conditioned: bool,
    format: str,
    on_notice: Callable[[str], None] = lambda message: None,
) -> Format:
    """Prepare the output format and its source, without writing anything. Raises UserError for an unknown format."""
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; accepted: {', '.join(FORMATS)}")
    if conditioned and is_trained_here(config):
        raise UserError(
            'source.classifier = "none", but soft labels of target images need a classifier. Train one with '
            "`ptgm-fast source --classifier-only CONFIG --out DIR` and name it in source.classifier"
        )
    task = build_task(config, on_notice=on_notice) if conditioned else None
    source = task.source if task else build_source(config, on_notice)
    return FORMATS[format](config, source, task, count, out)


def _to_do(made: Format, part: int, on_notice: Callable[[str], None]) -> bool:
    if made.parts.record(part) is None:
        return True
    damaged: Sequence[str] = made.parts.damaged(part)
    for name in damaged:
        on_notice(f"{name} is missing or damaged; making it again")
    return bool(damaged)
