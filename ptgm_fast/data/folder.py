"""A folder of class folders (an ImageFolder tree): which files are images, and of which class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ptgm_fast.data.cache import stamp
from ptgm_fast.data.decoding import Items, Wanted, decode_all
from ptgm_fast.data.images import ImageSet, no_labels
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
# Files and folders that operating systems and archivers leave behind, besides hidden ones.
_JUNK = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir"}
_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "dev")


def load_folder(path: str, wanted: Wanted) -> ImageSet:
    """Load the images under root/CLASS, at any depth, with classes sorted by name; unlabelled: all images under root.

    Links are followed, but each folder is visited only once per class. Hidden files and folders and system files
    (`__MACOSX`, `Thumbs.db`) are skipped. One notice counts them, together with files of other types and animations,
    of which only the first frame is read. Raises UserError as `load` does, and for a train/test tree, naming the options
    that accept it.
    """
    root = _root(path)
    skipped: Counter[str] = Counter()
    if wanted.labelled:
        files, labels, names = class_files(path, skipped)
    else:
        files = _images(root, skipped)
        if not files:
            raise UserError(f"data folder {path!r} contains no images")
        labels, names = no_labels(len(files))
    items = Items(
        count=len(files),
        decode=lambda i, on_frames: read_image(files[i], on_frames),
        name=lambda i: str(files[i]),
        place=f"folder:{root.resolve()}",
        stamps=[stamp(str(f.relative_to(root)), f.stat()) for f in files] if wanted.cache else None,
    )
    images, animations = decode_all(items, wanted)
    skipped["animations (all frames but the first)"] = animations
    if counted := ", ".join(f"{count} {what}" for what, count in skipped.items() if count):
        wanted.on_notice(f"{path}: skipped {counted}")
    return ImageSet(images, labels, names)


def class_files(path: str, skipped: Counter[str]) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """The files of all class folders, their labels, int64 [N], and the class names; `skipped` counts what was skipped.

    Raises UserError as `load_folder` does, before any image is read.
    """
    if trees := split_trees(path):
        separate = f" and data.test_images=folder:{trees[1]}" if len(trees) > 1 else ""
        raise UserError(
            f"data folder {path!r} holds splits ({', '.join(t.name for t in trees)}), not classes; "
            f"set data.images=folder:{trees[0]}{separate}"
        )
    places = sorted(_entries(_root(path), skipped), key=lambda p: class_name(p.name))
    classes = [p for p in places if _is_folder(p)]
    skipped["images outside the class folders"] = sum(
        p.suffix.lower() in IMAGE_SUFFIXES for p in places if p not in classes
    )
    if not classes:
        raise UserError(
            f"data folder {path!r} has no class folders; expected {path}/CLASS/IMAGE files, one folder per class"
        )
    names = tuple(class_name(p.name) for p in classes)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"data folder {path!r} has two class folders whose names look the same, {twice[0]!r}; rename or merge them"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        found = _images(folder, skipped)
        if not found:
            raise UserError(
                f"class folder {str(folder)!r} contains no images; add some or remove the folder"
            )
        files += found
        labels += [label] * len(found)
    return files, torch.tensor(labels), names


def class_name(name: object) -> str:
    """A class name as NFC-normalized text, so that names that look the same are equal; invalid UTF-8 bytes become `\\xff`."""
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def _entries(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The entries of a folder, except hidden and system files."""
    try:
        found = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"folder {str(folder)!r} cannot be read ({error.strerror})") from error
    for path in found:
        if path.name.startswith(".") or path.name.lower() in _JUNK:
            skipped["hidden or system files and folders"] += 1
        else:
            yield path


def _images(folder: Path, skipped: Counter[str]) -> list[Path]:
    """The image files under a class folder, sorted."""
    files, waiting, seen = [], [folder], set()
    while waiting:
        place = waiting.pop()
        status = place.stat()
        # A link may lead back to a parent folder, and two links may lead to the same one.
        if (identity := (status.st_dev, status.st_ino)) in seen:
            continue
        seen.add(identity)
        for path in _entries(place, skipped):
            if _is_folder(path):
                waiting.append(path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                skipped["files of other types"] += 1
            elif not path.is_file():
                raise UserError(
                    f"image {str(path)!r} is not a file, or a broken link; replace or remove it"
                )
            else:
                files.append(path)
    return sorted(files)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(f"{str(path)[:200]!r} cannot be read ({error.strerror})") from error


def split_trees(path: str) -> list[Path]:
    """The parts of a root/train/CLASS/IMAGE tree, training first, then test; empty for a folder of class folders.

    Without this check, such a tree would load as the classes train and test.
    """
    folders = [p for p in _entries(_root(path), Counter()) if _is_folder(p)]
    by_name = {p.name.lower(): p for p in folders}
    parts = [by_name[name] for name in (*_TRAIN, *_TEST) if name in by_name]
    if len(parts) < 2 and parts != folders:
        return []
    trees = [p for p in parts if _is_tree(p)]
    return trees if trees[:1] == parts[:1] else []


def _root(path: str) -> Path:
    if not _is_folder(root := Path(path)):
        raise UserError(f"data folder {path!r} does not exist or is not a folder")
    return root


def _is_tree(folder: Path) -> bool:
    """Whether a folder contains folders and no images next to them."""
    entries = list(_entries(folder, Counter()))
    return any(_is_folder(p) for p in entries) and not any(
        p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() for p in entries
    )
