"""Hugging Face `datasets` on disk: `save_to_disk` folders and parquet files. Nothing is downloaded and no script is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.data.cache import stamp
from ptgm_fast.data.decoding import Items, Wanted, decode_all
from ptgm_fast.data.folder import class_name
from ptgm_fast.data.images import ImageSet, no_labels, only_used
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import MissingExtraError, UserError
from ptgm_fast.query import split_query

OPTIONS = ("split", "image", "label")


def load_datasets(rest: str, wanted: Wanted) -> ImageSet:
    """Load PATH?split=NAME&image=COLUMN&label=COLUMN: a split of a saved DatasetDict, and the columns if there are several.

    Images must be stored in the files themselves; paths to other files are refused. Labels are a ClassLabel column, whose
    names are kept, or a column of integers or text, numbered in sorted order. Classes without images are dropped.
    """
    path, _, query = rest.partition("?")
    what = f"datasets:{rest}"
    try:
        options = dict(split_query(query))
    except ValueError as error:
        raise UserError(f"{what}: options are written ?name=value&name=value ({error})") from error
    if unknown := [name for name in options if name not in OPTIONS]:
        raise UserError(f"{what}: unknown option {unknown[0]!r}; accepted: {', '.join(OPTIONS)}")
    place = Path(path)
    if not place.exists():
        raise UserError(f"data set {path!r} does not exist; nothing is downloaded")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"the data set {what}", "datasets", "datasets") from error
    table, features = _table(datasets, place, options.get("split"), what)
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    image = _column(options, "image", [n for n, k in kinds.items() if k == "Image"], kinds, what)
    pictures = table.column(image)
    if not len(pictures):
        raise UserError(f"{what} contains no images")
    numbered = (
        _labels(table, features, options, what) if wanted.labelled else no_labels(len(pictures))
    )

    def name(i: int) -> str:
        return f"row {i} of {path}"

    def data(i: int) -> bytes:
        held = pictures[i].as_py()
        if not isinstance(held, dict) or not held.get("bytes"):
            raise UserError(
                f"{what}: row {i} does not contain its image; save the data set with save_to_disk, which embeds images"
            )
        content: bytes = held["bytes"]
        return content

    root = place if place.is_dir() else place.parent
    items = Items(
        count=len(pictures),
        decode=lambda i, on_frames: read_image(name(i), on_frames, data=data(i)),
        name=name,
        place=f"datasets:{place.resolve()}?{query}",
        stamps=[stamp(str(f.relative_to(root)), f.stat()) for f in sorted(_files(place))],
    )
    images, animations = decode_all(items, wanted)
    if animations:
        wanted.on_notice(f"{path}: skipped {animations} animations (all frames but the first)")
    return ImageSet(images, *numbered)


def _labels(
    table: Any, features: Any, options: dict[str, str], what: str
) -> tuple[Tensor, tuple[str, ...]]:
    """The labels, int64 [N], and the names of the classes that occur."""
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    candidates = [n for n, k in kinds.items() if k == "ClassLabel"] or [
        name for name in kinds if name in ("label", "labels")
    ]
    label = _column(options, "label", candidates, kinds, what)
    values = table.column(label).to_pylist()
    if None in values or (kinds[label] == "ClassLabel" and min(values) < 0):
        raise UserError(f"{what}: some rows of column {label!r} have no label")
    if kinds[label] == "ClassLabel":
        return only_used(values, tuple(map(class_name, features[label].names)))
    if not all(isinstance(value, (int, str)) for value in values):
        raise UserError(
            f"{what}: column {label!r} does not hold classes (numbers or text); name the right one with &label=COLUMN"
        )
    distinct, numbers = np.unique(
        [class_name(v) if isinstance(v, str) else v for v in values], return_inverse=True
    )
    return torch.from_numpy(numbers.astype(np.int64)), tuple(map(str, distinct))


def _files(place: Path) -> Iterator[Path]:
    return (f for f in place.rglob("*") if f.is_file()) if place.is_dir() else iter([place])


def _table(datasets: Any, place: Path, split: str | None, what: str) -> tuple[Any, Any]:
    """The Arrow table of a data set and the features of its columns."""
    parquet = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    try:
        if parquet:
            import pyarrow
            import pyarrow.parquet

            if split:
                # The Hub's naming: train-00000-of-00002.parquet.
                parquet = [f for f in parquet if f.name.startswith(f"{split}-") or f.stem == split]
            elif len(prefixes := {f.stem.partition("-")[0] for f in parquet}) > 1:
                raise UserError(
                    f"{what} contains several splits ({', '.join(sorted(prefixes))}); choose one: ?split=NAME"
                )
            if not parquet:
                raise UserError(f"{what}: no parquet file belongs to split {split!r}")
            table = pyarrow.concat_tables([pyarrow.parquet.read_table(f) for f in parquet])
            return table, datasets.Features.from_arrow_schema(table.schema)
        found = datasets.load_from_disk(str(place))
    except UserError:
        raise
    except Exception as error:  # the readers raise many unrelated types
        raise UserError(
            f"{what} cannot be read ({error}); expected a folder written by save_to_disk, or parquet files"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            given = f"no split {split!r}" if split else "several splits"
            raise UserError(f"{what} has {given}; choose one: ?split={'|'.join(found)}")
        found = found[split]
    elif split:
        raise UserError(f"{what} has no splits; leave out ?split=")
    return found.data.table, found.features


def _column(
    options: dict[str, str], role: str, candidates: list[str], kinds: dict[str, str], what: str
) -> str:
    """The requested column, or the only candidate."""
    asked = options.get(role)
    if asked in kinds or (asked is None and len(candidates) == 1):
        return asked or candidates[0]
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    problem = f"there is no column {asked!r}" if asked else f"which column is the {role}?"
    raise UserError(f"{what}: {problem} Its columns: {listed}; name one with ?{role}=COLUMN")
