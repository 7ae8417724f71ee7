"""A first config for a folder of class folders, with settings that follow from the images in it."""

from __future__ import annotations

import importlib.util
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ptgm_fast import generators
from ptgm_fast.data.decoding import CHUNK, ahead, usable_cores
from ptgm_fast.data.folder import class_files, split_trees
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError
from ptgm_fast.training.options import PPOptions, TargetOptions

# Enough to select a checkpoint, and to detect a gain of one point; more images of a class are worth more as labels.
MOST_VALIDATION, MOST_TEST = 50, 400
# One fifth of a class each.
PART = 5
# Up to this side length the project's small networks suffice.
SMALL = 64
LISTED = 5


@dataclass(frozen=True)
class Seen:
    """The contents of `folder`. counts: images of each class; test_counts: the same for the separate test folder, if any.

    forms: int64 [N, 3], height, width and channels (1 also if all channels are equal) of the readable images; unreadable:
    one error message for each of the others.
    """

    folder: Path
    images: Path
    test_images: Path | None
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    skipped: dict[str, int]
    forms: Tensor
    unreadable: tuple[str, ...]

    @property
    def name(self) -> str:
        """A task name: the folder's name, with characters that any file system accepts."""
        return re.sub(r"[^\w.-]+", "-", self.folder.resolve().name).strip("-.") or "images"

    @property
    def side(self) -> int:
        """The median of the images' shorter sides."""
        return int(self.forms[:, :2].amin(1).median())

    @property
    def channels(self) -> int:
        return int(self.forms[:, 2].max())


def look(folder: Path, on_images: Callable[[int, int], None] = lambda done, total: None) -> Seen:
    """Read every image of a folder of class folders, or of one that contains train/CLASS and test/CLASS, as training does.

    on_images(done, total): receives the number of images read. Raises UserError if there are no class folders or only one,
    if a class is empty, or if the test classes differ.
    """
    trees = split_trees(str(folder))
    images, test_images = trees[0] if trees else folder, trees[1] if trees[1:] else None
    skipped: Counter[str] = Counter()
    files, labels, names = class_files(str(images), skipped)
    if len(names) < 2:
        raise UserError(
            f"{str(images)!r} has one class folder, {names[0]!r}; a classifier needs at least two"
        )
    test_files: list[Path] = []
    test_labels = labels[:0]
    if test_images:
        test_files, test_labels, test_names = class_files(str(test_images), skipped)
        if test_names != names:
            others = sorted({*test_names} ^ {*names})
            raise UserError(
                f"{str(test_images)!r} and {str(images)!r} have different classes: {', '.join(others[:LISTED])} in only one of them"
            )
    forms, unreadable = _forms([*files, *test_files], on_images)
    return Seen(
        folder=folder,
        images=images,
        test_images=test_images,
        class_names=names,
        counts=tuple(labels.bincount(minlength=len(names)).tolist()),
        test_counts=tuple(test_labels.bincount(minlength=len(names)).tolist()) * bool(test_images),
        skipped={what: count for what, count in skipped.items() if count},
        forms=torch.tensor(forms, dtype=torch.int64).view(-1, 3),
        unreadable=tuple(unreadable),
    )


def _forms(
    files: list[Path], on_images: Callable[[int, int], None]
) -> tuple[list[tuple[int, int, int]], list[str]]:
    def form(part: list[Path]) -> list[tuple[int, int, int] | str]:
        return [_form(file) for file in part]

    forms: list[tuple[int, int, int]] = []
    unreadable: list[str] = []
    parts = (files[i : i + CHUNK] for i in range(0, len(files), CHUNK))
    for found in ahead(form, parts, usable_cores()):
        forms += [f for f in found if not isinstance(f, str)]
        unreadable += [f for f in found if isinstance(f, str)]
        on_images(len(forms) + len(unreadable), len(files))
    return forms, unreadable


def _form(file: Path) -> tuple[int, int, int] | str:
    """Height, width and channels of an image file, or the reason why it cannot be read."""
    try:
        image = read_image(file)[0]
    except UserError as error:
        return str(error)
    channels, height, width = image.shape
    grey = channels == 1 or bool((image == image[:1]).all())
    return height, width, 1 if grey else channels


def describe(seen: Seen) -> Iterator[str]:
    """The contents of a folder, one line per fact."""
    least, most, middle = min(seen.counts), max(seen.counts), statistics.median(seen.counts)
    yield (
        f"{seen.images}: {len(seen.counts)} classes, {sum(seen.counts):,} images; {least} to {most} per class, median {middle:g}"
    )
    if seen.test_images:
        yield f"{seen.test_images}: {sum(seen.test_counts):,} test images of the same classes, at least {min(seen.test_counts)} each"
    if len(seen.forms):
        sides, colour = seen.forms[:, :2], int((seen.forms[:, 2] == 3).sum())
        (low, high), (wide, tall) = sides.amin(0).tolist(), sides.amax(0).tolist()
        extent = f"{high}x{low}" + (f" to {tall}x{wide}" if (low, high) != (wide, tall) else "")
        yield (
            f"{extent} pixels (width x height), median of the shorter side {seen.side}; "
            f"{colour:,} in colour, {len(seen.forms) - colour:,} grey"
        )
    if seen.skipped:
        yield "skipped: " + ", ".join(f"{count} {what}" for what, count in seen.skipped.items())


def first_config(
    seen: Seen,
    generator: str = "letters",
    classifier: tuple[str, str] | None = None,
    task: str = "",
) -> str:
    """Return a commented TOML config that `check` and `train` accept as it is. classifier: network and weights of C_s.

    Raises UserError for unreadable images, for a class with too few images, and as `generators.load` does.
    """
    if seen.unreadable:
        more = f"\n... and {len(seen.unreadable) - LISTED} more" * (len(seen.unreadable) > LISTED)
        raise UserError(
            "training stops at an image that cannot be read. Fix these and run init again:\n"
            + "\n".join(seen.unreadable[:LISTED])
            + more
        )
    validation, test = _held_out(seen)
    card = generators.load_card(generator)
    side = _image_size(seen.side, card.image_size)
    lines = [
        f"# {len(seen.counts)} classes, {min(seen.counts)} to {max(seen.counts)} images each. Every setting: docs/options.md.",
        f"task = {_text(task or seen.name)}",
        "",
        "[data]                          # paths are relative to the folder where ptgm-fast is run",
        f"images = {_text(f'folder:{seen.images}')}",
    ]
    if seen.test_images:
        lines.append(f"test_images = {_text(f'folder:{seen.test_images}')}")
    lines += [
        'labels_per_class = "all"        # all that validation and test leave over; or a number',
        f"validation_per_class = {validation:<8} # select the checkpoint",
        f"test_per_class = {test:<14} # used once, at the end",
        f"image_size = {side:<18} # input of the target network; the generator makes {card.image_size}. Time grows with its square",
        f"channels = {seen.channels:<20} # {'grey' if seen.channels == 1 else 'colour'}, like the images",
        '# cache = "decoded"             # keeps decoded images for later runs',
        '# unlabelled = "folder:more"    # additional unlabelled images: P-SSL learns from them too',
        "",
        "[source]",
        f"generator = {_text(generator)}"
        + (
            "           # bundled, 52 Latin letters, for a first run; one closer to your images helps more: docs/generators.md"
            if generator == "letters"
            else ""
        ),
    ]
    if classifier:
        lines += [
            "",
            "[source.classifier]             # input size and normalization as given by timm or torchvision",
            f"network = {_text(classifier[0])}",
            f"weights = {_text(classifier[1])}",
        ]
    elif not generators.has_classifier(generator):
        lines.append(
            'classifier = "none"             # first trains one on the generator\'s samples; or name your own: docs/check.md'
        )
    lines += [
        "",
        "[target]",
        f"network = {_text(_network(side))} # or timm:NAME, torchvision:NAME: docs/networks.md",
        "",
        "# The budget (these are the defaults).",
        "[pp]",
        f"steps = {PPOptions().steps:<23} # pseudo pre-training",
        "",
        "[training]",
        f"steps = {TargetOptions().steps:<23} # P-SSL, on your images",
    ]
    return "\n".join(lines) + "\n"


def _held_out(seen: Seen) -> tuple[int, str | int]:
    """Numbers of validation and test images per class: one fifth of the smallest class each, up to a limit."""
    least, needed = min(seen.counts), 2 if seen.test_images else 3
    if least < needed:
        name = seen.class_names[seen.counts.index(least)]
        uses = "training, validation" + ("" if seen.test_images else " and test")
        raise UserError(
            f"class {name!r} has {least} image{'s' * (least > 1)}, but a class needs at least {needed}, one each for {uses}; "
            "add images, or remove its folder"
        )
    part = max(1, least // PART)
    return min(part, MOST_VALIDATION), '"all"' if seen.test_images else min(part, MOST_TEST)


def _image_size(side: int, generated: int) -> int:
    """The images' side, rounded down to a multiple of 8, but at least the generator's and at most twice that.

    Pseudo images show no more detail.
    """
    return max(generated, min(side // 8 * 8, 2 * generated))


def _network(side: int) -> str:
    large = side > SMALL and importlib.util.find_spec("timm")
    return "timm:resnet18" if large else "ptgm:resnet-small"


def _text(value: str) -> str:
    # TOML accepts all JSON escapes.
    return json.dumps(value, ensure_ascii=False)
