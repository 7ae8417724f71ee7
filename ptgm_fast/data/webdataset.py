"""WebDataset tar shards: KEY.jpg (or another image type) and KEY.cls, read with the standard library; nothing is extracted."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ptgm_fast.data.cache import stamp
from ptgm_fast.data.decoding import Items, Wanted, decode_all
from ptgm_fast.data.folder import IMAGE_SUFFIXES
from ptgm_fast.data.images import ImageSet, no_labels, only_used
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class _Sample:
    shard: Path
    key: str
    image: tuple[str, int, int] | None = None
    """Name, byte offset, number of bytes."""
    label: int | None = None


def load_webdataset(pattern: str, wanted: Wanted) -> ImageSet:
    """Load the samples of the shards in order: one image and one class number (`.cls`, text) each; other entries are skipped.

    pattern: a tar file, a glob (`train-*.tar`; the folder is literal), or a range in WebDataset's notation
    (`train-{0000..0099}.tar`). The classes are the numbers that occur. Raises UserError for a damaged or compressed shard,
    and for a sample without an image or a class.
    """
    shards = _shards(pattern)
    skipped: Counter[str] = Counter()
    samples = [sample for shard in shards for sample in _samples(shard, skipped)]
    if not samples:
        raise UserError(
            f"the shards {pattern!r} contain no samples; expected KEY.jpg and KEY.cls files"
        )
    labels = []
    for sample in samples:
        if sample.image is None or (sample.label is None and wanted.labelled):
            missing = "image" if sample.image is None else ".cls file (its class number)"
            raise UserError(f"sample {sample.key!r} of {str(sample.shard)!r} has no {missing}")
        labels.append(sample.label or 0)

    def name(i: int) -> str:
        image = samples[i].image
        return f"{samples[i].shard}/{image[0]}" if image else ""

    def data(i: int) -> bytes:
        image = samples[i].image
        assert image is not None
        with samples[i].shard.open("rb") as file:
            file.seek(image[1])
            return file.read(image[2])

    items = Items(
        count=len(samples),
        decode=lambda i, on_frames: read_image(name(i), on_frames, data=data(i)),
        name=name,
        place=f"webdataset:{[str(shard.resolve()) for shard in shards]}",
        stamps=[stamp(str(shard), shard.stat()) for shard in shards],
    )
    images, animations = decode_all(items, wanted)
    skipped["animations (all frames but the first)"] = animations
    if counted := ", ".join(f"{count} {what}" for what, count in skipped.items() if count):
        wanted.on_notice(f"{pattern}: skipped {counted}")
    if not wanted.labelled:
        return ImageSet(images, *no_labels(len(samples)))
    return ImageSet(images, *only_used(labels, tuple(map(str, range(max(labels) + 1)))))


def _shards(pattern: str) -> list[Path]:
    """The files of a pattern, sorted; all files of a range must exist."""
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        numbers = range(int(first), int(last) + 1)
        written = (f"{n:0{len(first)}d}" for n in numbers)
        paths = [Path(pattern[: found.start()] + n + pattern[found.end() :]) for n in written]
    else:
        # A path is taken literally, including brackets, if such a file exists.
        path = Path(pattern)
        paths = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(
            f"there is no shard {(missing or [pattern])[0]!r}; accepted: a .tar file, a glob (train-*.tar), "
            "or a range (train-{0000..0099}.tar)"
        )
    return paths


def _samples(shard: Path, skipped: Counter[str]) -> list[_Sample]:
    """The samples of a shard, in order: where each image is stored, and its class number."""
    found: dict[str, _Sample] = {}
    try:
        # "r:" accepts only uncompressed files: in compressed ones, no single image could be read by offset.
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                folder, _, base = entry.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not entry.isreg() or not stem:
                    continue
                key, suffix = f"{folder}/{stem}", f".{suffix.lower()}"
                if suffix not in IMAGE_SUFFIXES and suffix != ".cls":
                    skipped["files of other types"] += suffix != ".json"
                    continue
                sample = found.setdefault(key, _Sample(shard, key.lstrip("/")))
                if suffix == ".cls":
                    sample.label = _number(tar, entry, shard)
                elif sample.image is not None:
                    raise UserError(
                        f"sample {sample.key!r} of {str(shard)!r} has two images, {sample.image[0]!r} and {entry.name!r}"
                    )
                else:
                    sample.image = entry.name, entry.offset_data, entry.size
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"shard {str(shard)!r} is damaged or not an uncompressed tar file ({error}); write it again without compression"
        ) from error
    return list(found.values())


def _number(tar: tarfile.TarFile, entry: tarfile.TarInfo, shard: Path) -> int:
    file = tar.extractfile(entry)
    assert file is not None
    text = file.read(64).decode("utf-8", "replace").strip()
    if not text.isdecimal():
        raise UserError(
            f"{entry.name!r} in {str(shard)!r} contains {text[:20]!r}, expected a class number from 0 up"
        )
    return int(text)
