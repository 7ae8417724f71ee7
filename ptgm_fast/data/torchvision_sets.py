"""torchvision data sets by name: those already on disk, and FakeData."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ptgm_fast.data.decoding import Items, Wanted, decode_all
from ptgm_fast.data.folder import class_name
from ptgm_fast.data.images import ImageSet, only_used
from ptgm_fast.data.pixels import to_bytes
from ptgm_fast.errors import MissingExtraError, UserError
from ptgm_fast.query import split_query


def load_torchvision(rest: str, wanted: Wanted) -> ImageSet:
    """Load NAME?option=value&...: the options are the data set's own arguments, with values written literally.

    Classes without images are dropped, and the labels are renumbered.
    """
    try:
        import torchvision.datasets as datasets
    except ImportError as error:
        raise MissingExtraError(
            f"the data set torchvision:{rest}", "torchvision", "torchvision"
        ) from error
    name, _, query = rest.partition("?")
    factory = getattr(datasets, name, None)
    if not inspect.isclass(factory):
        raise UserError(
            f"torchvision has no data set {name!r}; see torchvision.datasets for the names"
        )
    try:
        options = dict(split_query(query))
    except ValueError as error:
        raise UserError(
            f"torchvision:{rest}: options are written ?name=value&name=value ({error})"
        ) from error
    try:
        dataset: Any = factory(**_arguments(factory, options))
    except Exception as error:  # each data set checks its files in its own way
        raise UserError(
            f"torchvision:{name} cannot be opened with {options or 'no options'} ({error}). Nothing is downloaded: put the "
            "data set there first, and pass its options as torchvision:NAME?root=DIR&split=train (or &train=true)"
        ) from error
    labels: list[int] = []

    def decode(i: int, on_frames: Callable[[], None]) -> Tensor:
        try:
            image, label = dataset[i]
            labels.append(int(label))
            return to_bytes(image)[None]
        except Exception as error:
            raise UserError(
                f"torchvision:{name}: item {i} is not a readable image with one class ({error})"
            ) from error

    if not len(dataset):
        raise UserError(f"torchvision:{name} contains no images")
    # Not every data set is thread-safe, or returns the same images each time: one thread, and no cache.
    items = Items(
        count=len(dataset),
        decode=decode,
        name=lambda i: f"item {i} of torchvision:{name}",
        place=f"torchvision:{name}",
        parallel=False,
    )
    images, _ = decode_all(items, wanted)
    found = tuple(class_name(n) for n in getattr(dataset, "classes", None) or ())
    if min(labels) < 0:
        raise UserError(f"torchvision:{name} has labels below 0: this split is unlabelled")
    names = found if max(labels) < len(found) else tuple(map(str, range(max(labels) + 1)))
    # EMNIST's letters use labels 1 to 26 of 27 names; splits of other data sets may lack classes too.
    return ImageSet(images, *only_used(labels, names))


def _arguments(factory: type, options: dict[str, str]) -> dict[str, Any]:
    """The options, converted to the types of the data set's arguments."""
    parameters = inspect.signature(factory).parameters
    arguments = {
        name: _value(text, parameters[name].default if name in parameters else None)
        for name, text in options.items()
    }
    if "root" in parameters:
        arguments["root"] = options.get("root", "data")
    if "loader" in parameters:
        # torchvision's default loader converts every image to 8 bits.
        from PIL import Image

        arguments["loader"] = Image.open
    return arguments


def _value(text: str, default: Any) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if isinstance(default, int) and not isinstance(default, bool):
        return int(text)
    if isinstance(default, tuple):
        return tuple(int(part) for part in text.split(","))
    return text
