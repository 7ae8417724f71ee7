"""The output formats of `synthesize`: image folder, tar shards, pool. Each consists of parts determined by their index."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptgm_fast.config import RunConfig, config_to_toml
from ptgm_fast.data.images import encode_png, to_uint8
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import sha256
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.pools import conditioned_recipe, uniform_recipe
from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import (
    BLOCK,
    AddressedOrder,
    SourceModels,
    Synthesis,
    conditioning_table,
)
from ptgm_fast.sampling.parts import MAKING, Parts, Record, check_same
from ptgm_fast.sampling.pool import parts_of
from ptgm_fast.sampling.stores import file_names, npy_bytes

BATCH = 256


class Format(ABC):
    """A folder of `count` images. task: provides the target images to condition on; None for uniform labels."""

    parts: Parts

    def __init__(
        self, config: RunConfig, source: SourceModels, task: Task | None, count: int, out: Path
    ) -> None:
        self.config, self.source, self.task, self.count, self.out = config, source, task, count, out
        self.class_names: Sequence[str] = (
            task.data.train.class_names if task else source.generator.card.class_names
        )

    def begin(self) -> list[str]:
        """Create or continue the folder; return the files that a finished one has lost. Raises UserError as `Parts.begin`."""
        self.parts.begin()
        return []

    @abstractmethod
    def write(self, part: int) -> None:
        """Make a part and write it."""

    @property
    def summary(self) -> dict[str, Any]:
        return {"count": self.count, "class_names": list(self.class_names)}

    def finish(self) -> dict[str, Any] | None:
        """Complete the folder once all parts exist; return its summary, or None if parts are missing."""
        return self.summary if self.parts.finish() else None

    def records(
        self, labels: torch.Tensor, soft_labels: torch.Tensor | None
    ) -> list[dict[str, Any]]:
        """Metadata of images: the class; if `labels` are indices of target images, also the requested soft label."""
        names = self.source.generator.card.class_names
        if self.task is None:
            return [{"label": int(label), "class": names[int(label)]} for label in labels]
        assert soft_labels is not None
        train, records = self.task.data.train, []
        for index, soft in zip(labels.tolist(), soft_labels.cpu(), strict=True):
            label = int(train.labels[index])
            records.append(
                {
                    "label": label,
                    "class": train.class_names[label],
                    "target_index": index,
                    "soft_label": top_classes(soft, names, 5),
                }
            )
        return records


class PoolFormat(Format):
    """A pool, see `sampling.pool`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.recipe = (
            conditioned_recipe(self.task) if self.task else uniform_recipe(self.config, self.source)
        )
        self.parts = parts_of(self.law(), self.count, self.out)

    def law(self) -> dict[str, Any]:
        return self.recipe.law

    def images(self, part: int) -> tuple[np.ndarray, torch.Tensor]:
        """The images of a part, uint8 [n, C, H, W], and their labels, int64 [n]."""
        numbers = self.parts.range(part)
        blocks = [
            self.recipe.block(b) for b in range(numbers.start // BLOCK, -(-numbers.stop // BLOCK))
        ]
        images, labels = (torch.cat([b[i] for b in blocks])[: len(numbers)].cpu() for i in (0, 1))
        return images.numpy(), labels

    def write(self, part: int) -> None:
        images, labels = self.images(part)
        files = dict(zip(file_names(part), (images, labels.numpy()), strict=True))
        if part == 0:
            files |= self.recipe.extra()
        self.parts.write({name: npy_bytes(array) for name, array in files.items()}, part)


class TarFormat(PoolFormat):
    """The images of a pool as PNGs in tar shards: NUMBER.png, NUMBER.cls (the class) and NUMBER.json.

    This is the WebDataset layout (https://github.com/webdataset/webdataset), which Hugging Face `datasets` also reads.
    """

    def law(self) -> dict[str, Any]:
        names = list(self.class_names)
        return {**super().law(), "format": "ptgm-fast webdataset", "class_names": names}

    def write(self, part: int) -> None:
        images, labels = self.images(part)
        table = self.recipe.table
        records = self.records(
            labels, None if table is None else table.soft_labels[labels.to(self.source.device)]
        )
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index, pixels, record in zip(self.parts.range(part), images, records, strict=True):
                if soft := record.get("soft_label"):
                    # Lists, since readers that turn JSON into columns need the same keys in every sample.
                    record |= {"soft_label": {"classes": list(soft), "shares": list(soft.values())}}
                for suffix, data in (
                    ("png", encode_png(torch.from_numpy(pixels))),
                    ("cls", str(record["label"]).encode()),
                    ("json", json.dumps({"index": index, **record}).encode()),
                ):
                    # No time and no owner, so the bytes do not depend on who writes them.
                    entry = tarfile.TarInfo(f"{index:09d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        self.parts.write({f"images-{part:05d}.tar": buffer.getvalue()}, part)


class FolderFormat(Format):
    """CLASS/NUMBER.png with manifest.jsonl, config.toml and, last, summary.json.

    summary.json's pixels_sha256 is the SHA-256 of the batches' SHA-256s.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.synthesis = Synthesis(self.source, seed=self.config.seed, purpose="synthesize")
        self.folders = _folder_names(self.class_names)
        law = {
            "format": "image folder",
            "conditioned": self.task is not None,
            "config": self.config.model_dump(mode="json"),
        }
        self.parts = Parts(self.out, law, count=self.count, size=BATCH)
        self.folder = RunFolder(self.out)
        self._expected = ""

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "seed": self.config.seed,
            "generator": self.config.source.generator,
            "conditioned": self.task is not None,
            "class_names": list(self.class_names),
        }

    def begin(self) -> list[str]:
        lost: list[str] = []
        if self.folder.summary.is_file() and not self.parts.begun:
            records, lost = self._look_through()
            self.parts.adopt(records)
        self.parts.begin()
        self.parts.write_file(self.folder.config, config_to_toml(self.config).encode())
        for name in self.folders:
            (self.out / name).mkdir(exist_ok=True)
        return lost

    def _look_through(self) -> tuple[dict[int, Record], list[str]]:
        """The records of a finished folder's intact parts, and the images that are missing or damaged."""
        found = json.loads(self.folder.summary.read_text(encoding="utf-8"))
        texts = self.folder.config.read_text(encoding="utf-8"), config_to_toml(self.config)
        there, asked = map(tomllib.loads, texts)
        check_same(
            {**found, "config": there}, {**self.summary, "config": asked}, repr(str(self.out))
        )
        self._expected = found["pixels_sha256"]
        lines = (self.out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        records, lost = {}, []
        for part in range(self.parts.number):
            numbers = self.parts.range(part)
            own = lines[numbers.start : numbers.stop]
            files = [json.loads(line)["file"] for line in own]
            images = [_read_png(self.out / file) for file in files]
            lost += [file for file, image in zip(files, images, strict=True) if image is None]
            whole = [image for image in images if image is not None]
            if len(whole) == len(numbers):
                pixels = _digest(np.stack(whole))
                hashes = {file: sha256(self.out / file) for file in files}
                records[part] = {"files": hashes, "lines": own, "pixels": pixels}
        return records, lost

    def write(self, part: int) -> None:
        numbers = self.parts.range(part)
        start, number = numbers.start, len(numbers)
        condition, kind, records = self._conditions(start, number)
        images = to_uint8(self.synthesis.images(number, start, condition, kind)).cpu().numpy()
        files, lines = {}, []
        for index, pixels, record in zip(numbers, images, records, strict=True):
            file = f"{self.folders[record['label']]}/{index:07d}.png"
            files[file] = encode_png(torch.from_numpy(pixels))
            lines.append(json.dumps({"file": file, "index": index, **record}))
        self.parts.write(files, part, flushed=False, lines=lines, pixels=_digest(images))

    def _conditions(
        self, start: int, number: int
    ) -> tuple[torch.Tensor, Any, list[dict[str, Any]]]:
        if self.task is None:
            labels = self.synthesis.labels(number, start)
            return labels, "class", self.records(labels, None)
        train, options = self.task.data.train, self.config.p_ssl
        order = AddressedOrder(len(train), seed=self.config.seed, purpose="synthesize/order")
        chosen = order.indices(start, number)
        table = conditioning_table(
            self.source,
            self.task.data.asking[0][chosen],
            temperature=options.pcs_temperature,
            top_k=options.pcs_top_k or None,
        )
        rows = torch.arange(number, device=self.source.device)
        return (*table.conditions(rows), self.records(chosen, table.soft_labels))

    def finish(self) -> dict[str, Any] | None:
        # Another process may finish at the same time and remove the records.
        with suppress(FileNotFoundError):
            self._join([self.parts.record(part) for part in range(self.parts.number)])
        if not self.folder.summary.is_file():
            return None
        shutil.rmtree(self.out / MAKING, ignore_errors=True)
        summary: dict[str, Any] = json.loads(self.folder.summary.read_text(encoding="utf-8"))
        return summary

    def _join(self, records: Sequence[Record | None]) -> None:
        """Write the manifest of all parts, then the summary."""
        whole = [record for record in records if record is not None]
        if len(whole) < len(records):
            return
        digest = hashlib.sha256(b"".join(bytes.fromhex(record["pixels"]) for record in whole))
        if self._expected not in ("", digest.hexdigest()):
            raise UserError(
                f"the images in {str(self.out)!r} do not match its summary.json; choose another --out"
            )
        lines = "".join(f"{line}\n" for record in whole for line in record["lines"])
        self.parts.write_file(self.out / "manifest.jsonl", lines.encode())
        summary = {**self.summary, "pixels_sha256": digest.hexdigest()}
        self.parts.write_file(self.folder.summary, (json.dumps(summary, indent=2) + "\n").encode())


def top_classes(soft: torch.Tensor, names: Sequence[str], most: int) -> dict[str, float]:
    """The most probable classes of a soft label [K], in descending order, with rounded shares."""
    top = soft.topk(min(most, len(names)))
    pairs = zip(top.values, top.indices, strict=True)
    return {names[int(index)]: round(float(share), 4) for share, index in pairs}


def _read_png(path: Path) -> np.ndarray | None:
    """The pixels of a PNG, uint8 [C, H, W]; None if it is missing or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _digest(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Folder names that stay distinct on case-insensitive file systems and cannot leave the output folder."""
    names = []
    for number, name in enumerate(class_names):
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
        names.append(f"{number:0{len(str(len(class_names) - 1))}d}_{safe}")
    return names
