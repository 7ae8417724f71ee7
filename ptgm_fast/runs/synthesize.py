"""Labelled pseudo images on disk: an image folder and a manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptgm_fast.config import RunConfig, config_to_toml
from ptgm_fast.errors import UserError
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.task import Task, build_source, build_task
from ptgm_fast.sampling import AddressedOrder, Synthesis, conditioning_table, to_uint8
from ptgm_fast.training.distributed import ProcessGroup, own_device

BATCH = 256


def synthesize(
    config: RunConfig,
    count: int,
    out: Path,
    *,
    conditioned: bool = False,
    on_images: Callable[[int, int], None] = lambda done, total: None,
    group: ProcessGroup | None = None,
) -> dict[str, Any]:
    """Write `count` images as `out/CLASS/NUMBER.png` with `out/manifest.jsonl`; returns what summary.json holds.

    Uniform: labels are drawn uniformly over the source classes, and CLASS is the label's name. Conditioned: each
    sample is made for the soft source label of a labelled target image (PCS), CLASS is that image's target class,
    and the manifest has the target image's index and its most probable source classes.
    Sample i depends on (seed, i) only: more images are the same first ones and more. Images, folder and
    manifest are complete or absent: the summary is written last. pixels_sha256 there is the SHA-256 of the batches'
    SHA-256s. In several processes each makes whole batches of its own, the same ones that one process makes, into
    the same folder, which all must see; what is written is then the same, bit for bit. on_images(done, total) is
    of the process's own share. Raises UserError as `train` does.
    """
    if count < 1:
        raise UserError(f"--count must be at least 1, got {count}")
    group = group or ProcessGroup()
    own_device(config.device, group)
    task = build_task(config) if conditioned else None
    source = task.source if task else build_source(config)
    class_names = task.data.train.class_names if task else source.generator.card.class_names
    folders = _folder_names(class_names)
    group.barrier()
    folder = RunFolder(out)
    group.from_first(lambda: _prepare(config, out, folders))
    if not (out / folders[0]).is_dir():
        raise UserError(
            f"{str(out)!r}, made by the first process, is not there for process {group.rank}; "
            "--out must be on a file system that all machines share"
        )
    first, batches = group.share(-(-count // BATCH))
    mine = range(first * BATCH, min((first + batches) * BATCH, count), BATCH)
    total = min((first + batches) * BATCH, count) - first * BATCH
    synthesis = Synthesis(source, seed=config.seed, purpose="synthesize")
    digests = []
    with _part(out, group.rank).open("w", encoding="utf-8") as manifest:
        for start in mine:
            number = min(BATCH, count - start)
            condition, kind, records = _conditions(config, synthesis, task, start, number)
            images = to_uint8(synthesis.images(number, start, condition, kind)).cpu()
            digests.append(hashlib.sha256(images.numpy().tobytes()).digest())
            for offset, record in enumerate(records):
                file = f"{folders[record['label']]}/{start + offset:07d}.png"
                _write_png(images[offset].numpy(), out / file)
                manifest.write(json.dumps({"file": file, "index": start + offset, **record}) + "\n")
            on_images(start + number - first * BATCH, total)
    digest = hashlib.sha256(b"".join(d for part in group.collect(digests) for d in part))
    summary = {
        "count": count,
        "seed": config.seed,
        "generator": config.source.generator,
        "conditioned": conditioned,
        "class_names": list(class_names),
        "pixels_sha256": digest.hexdigest(),
    }
    group.from_first(lambda: _join(folder, group, summary))
    return summary


def _prepare(config: RunConfig, out: Path, folders: list[str]) -> None:
    folder = RunFolder.create(out)
    folder.write_text(folder.config, config_to_toml(config))
    for name in folders:
        (out / name).mkdir()


def _part(out: Path, rank: int) -> Path:
    """The manifest of a process's own images. The first one's grows into the whole."""
    return out / (f".manifest-{rank}.jsonl" if rank else "manifest.jsonl")


def _join(folder: RunFolder, group: ProcessGroup, summary: dict[str, Any]) -> None:
    """The other processes' manifests after the first one's, then the summary."""
    with _part(folder.path, 0).open("ab") as whole:
        for rank in range(1, group.size):
            with _part(folder.path, rank).open("rb") as part:
                shutil.copyfileobj(part, whole)
    for rank in range(1, group.size):
        _part(folder.path, rank).unlink()
    folder.write_json(folder.summary, summary)


def _conditions(
    config: RunConfig, synthesis: Synthesis, task: Task | None, start: int, number: int
) -> tuple[torch.Tensor, Any, list[dict[str, Any]]]:
    source = synthesis.source
    names = source.generator.card.class_names
    if task is None:
        labels = synthesis.labels(number, start)
        return (
            labels,
            "class",
            [{"label": int(label), "class": names[int(label)]} for label in labels],
        )
    train = task.data.train
    order = AddressedOrder(len(train), seed=config.seed, purpose="synthesize/order")
    chosen = order.indices(start, number)
    table = conditioning_table(
        task.source,
        train.images[chosen],
        temperature=config.p_ssl.pcs_temperature,
        top_k=config.p_ssl.pcs_top_k or None,
    )
    records = []
    for index, soft in zip(chosen.tolist(), table.soft_labels.cpu(), strict=True):
        label = int(train.labels[index])
        records.append(
            {
                "label": label,
                "class": train.class_names[label],
                "target_index": index,
                "soft_label": top_classes(soft, names, 5),
            }
        )
    return (*table.conditions(torch.arange(number, device=source.device)), records)


def top_classes(soft: torch.Tensor, names: Sequence[str], most: int) -> dict[str, float]:
    """The most probable classes of a soft label [K], the first first, with their rounded shares."""
    top = soft.topk(min(most, len(names)))
    pairs = zip(top.values, top.indices, strict=True)
    return {names[int(index)]: round(float(share), 4) for share, index in pairs}


def _write_png(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)).save(path)


def _folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Folder names that stay apart on file systems that ignore case, and inside the output folder."""
    names = []
    for number, name in enumerate(class_names):
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        names.append(f"{number:0{len(str(len(class_names) - 1))}d}_{safe}")
    return names
