"""Build what a run needs from its config: data, source pair, target networks; errors in their combination are raised here."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from ptgm_fast import __version__, data, generators, models
from ptgm_fast.config import RunConfig
from ptgm_fast.config.run import REST
from ptgm_fast.data import ImageSet
from ptgm_fast.data.images import no_labels
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import decoded, encoded
from ptgm_fast.runs.classifier import as_files, load_classifier, seen_by_classifier
from ptgm_fast.sampling import SourceModels, derive_seed, seeded
from ptgm_fast.training.target_data import TargetData

# Number of images on which the exported weights are tested.
NUM_CHECKED = 8


@dataclass(frozen=True)
class ReadImages:
    """The contents of data.images, test_images and unlabelled, before a seed's split; None for what is not given.

    read_asking(train, rest) reads the labelled images `train`, int64 [N], and the unlabelled images again, in the source
    classifier's input form; rest: if given, the unlabelled images are those of `images` with these indices. read_asking is
    None if the source classifier sees images in the same form as the target network.
    """

    images: ImageSet
    test: ImageSet | None
    unlabelled: ImageSet | None = None
    read_asking: Callable[[torch.Tensor, torch.Tensor | None], tuple[data.Images, ...]] | None = (
        None
    )


@dataclass(frozen=True)
class Task:
    """A config with its data and its frozen source pair, all shapes checked."""

    config: RunConfig
    device: torch.device
    source: SourceModels
    data: TargetData
    read: ReadImages = field(repr=False)

    @property
    def num_classes(self) -> int:
        return self.data.train.num_classes

    def plain_network(self) -> torch.nn.Module:
        """The unmodified target architecture, with the seed's random initialization, on the CPU."""
        height, _ = self.data.train.image_size
        with seeded(self.config.seed, "init/network"):
            return models.build(
                self.config.target.network,
                num_classes=self.num_classes,
                channels=self.data.train.channels,
                image_size=height,
            )

    def new_network(self) -> models.TargetNetwork:
        """A randomly initialized target network, with fresh heads ``target`` and ``source``.

        All methods with the same seed start from the same weights.
        """
        seed, images = self.config.seed, self.data.train.images[:2]
        with seeded(seed, "heads"):
            target = models.TargetNetwork(
                self.plain_network(),
                num_classes=self.num_classes,
                name=self.config.target.network,
                images=self.data.normalizer(images.device)(images),
            )
        with seeded(seed, "init/target head"):
            target.set_head("target", self.num_classes)
        with seeded(seed, "init/source head"):
            target.set_head("source", self.source.num_classes)
        return target.to(self.device).to(memory_format=torch.channels_last)

    def check_exported(
        self,
        network: models.TargetNetwork,
        plain: torch.nn.Module,
        state: Mapping[str, torch.Tensor],
        images: ImageSet,
    ) -> None:
        """Raise UserError unless the plain network with `state` matches the trained one on the first images."""
        inputs = self.data.normalizer(self.device)(images.images[:NUM_CHECKED].to(self.device))
        name = f"target network {self.config.target.network}"
        models.check_exported(network, plain.to(self.device), state, inputs, name=name)


def build_task(
    config: RunConfig,
    like: Task | None = None,
    on_notice: Callable[[str], None] = lambda message: None,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> Task:
    """Load everything that the config names.

    like: another task; what both configs have in common (source pair, images) is reused and not tested again. on_notice:
    see `data.load`, `models.load_weights` and `generators.optimize`. on_images: see `data.load`. Raises UserError if
    something is missing or does not fit together.
    """
    same = {
        name: like is not None and getattr(like.config, name) == getattr(config, name)
        for name in ("source", "target", "device", "precision")
    }
    same["data"] = like is not None and _read_of(like.config) == _read_of(config)
    known = like if same["source"] and same["device"] and same["precision"] else None
    source = known.source if known else build_source(config, on_notice)
    card = source.generator.card
    read = (
        like.read
        if like and same["data"] and known
        else _read(config, card, _loader(config, on_notice, on_images))
    )
    task = Task(config, source.device, source, _split(config, read), read)
    if not (known and same["data"] and same["target"]):
        _check_networks(task)
    return task


def build_source(
    config: RunConfig, on_notice: Callable[[str], None] = lambda message: None
) -> SourceModels:
    """The frozen generator and source classifier of a config, on its device.

    on_notice(message) receives the notices of `generators.load`, `optimize` and `models.load_weights`.
    """
    device = choose_device(config.device)
    truncation = config.source.truncation or None
    generator = generators.load(config.source.generator, device=device, on_notice=on_notice)
    seen = seen_by_classifier(config.source.classifier, generator.card)
    classifier = load_classifier(config, generator.card, on_notice)
    optimized = None
    if config.source.optimize:
        optimized = generators.optimize(generator, truncation=truncation, on_notice=on_notice)
        assert isinstance(optimized.module, generators.Generator)
        generator = optimized.module
    return SourceModels(
        generator,
        classifier,
        optimized=optimized,
        mean=seen.mean,
        std=seen.std,
        form=seen.form,
        interpolation=seen.interpolation,
        truncation=truncation,
        device=device,
        precision=config.precision,
    )


def _target_form(config: RunConfig, card: generators.Card) -> tuple[int, int]:
    """Channels and side of the target network's images. Raises UserError if mean or std have another number of channels."""
    asked, size = config.data.channels, config.data.image_size
    channels = card.channels if asked == "generator" else asked
    for which in ("mean", "std"):
        values = getattr(config.data, which)
        if len(values) not in (1, channels):
            raise UserError(
                f"data.{which} has {len(values)} values for images with {channels} channel(s); give 1 or {channels}"
            )
    return channels, card.image_size if size == "generator" else size


def choose_device(name: str) -> torch.device:
    """The torch device of a name; "auto" is the first CUDA device, else the CPU. Raises UserError for an unusable device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Copying back to the host rules out "meta", whose tensors hold no data.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f'device {name!r} cannot be used here ({error}); "cpu" always works'
        ) from error
    return device


def _loader(
    config: RunConfig,
    on_notice: Callable[[str], None],
    on_images: Callable[[int, int], None],
) -> Callable[..., ImageSet]:
    """`data.load` with the config's cache and memory limit."""
    choice = config.data
    return partial(
        data.load,
        cache=choice.cache,
        memory_limit=choice.memory_limit,
        on_notice=on_notice,
        on_images=on_images,
    )


def _read_of(config: RunConfig) -> dict[str, Any]:
    """The part of config.data that determines which images are read, independent of the split."""
    split = {"labels_per_class", "validation_per_class", "test_per_class"}
    read = config.data.model_dump(exclude=split)
    return {**read, "unlabelled": ""} if config.data.unlabelled == REST else read


def _read(config: RunConfig, card: generators.Card, loader: Callable[..., ImageSet]) -> ReadImages:
    choice = config.data
    channels, size = _target_form(config, card)
    load = partial(loader, channels=channels, image_size=size)
    images = load(choice.images)
    if images.num_classes < 2:
        raise UserError(
            f"{choice.images!r} has {images.num_classes} class; a classifier needs at least two"
        )
    separate = load(choice.test_images) if choice.test_images else None
    if separate and separate.class_names != images.class_names:
        raise UserError(
            f"data.test_images has the classes {list(separate.class_names)}, but data.images has {list(images.class_names)}"
        )
    elsewhere = choice.unlabelled not in ("", REST)
    further = load(choice.unlabelled, labelled=False) if elsewhere else None
    seen = seen_by_classifier(config.source.classifier, card)
    if (seen.channels, as_files(seen)) == (channels, data.Fit(size)):
        return ReadImages(images, separate, further)

    # Skipped files have already been reported.
    again = partial(
        loader,
        channels=seen.channels,
        image_size=as_files(seen),
        on_notice=lambda message: None,
    )
    whole = cache(again)

    def of_images(rows: torch.Tensor) -> data.Images:
        # A few images are read on their own; for most of a set, the whole set is read once for the splits of all seeds.
        few = 2 * len(rows) < len(images)
        found = again(choice.images, rows=rows) if few else whole(choice.images).subset(rows)
        return found.images

    def asking(train: torch.Tensor, rest: torch.Tensor | None) -> tuple[data.Images, ...]:
        if rest is not None:
            return of_images(train), of_images(rest)
        if further is None:
            return (of_images(train),)
        return of_images(train), whole(choice.unlabelled, labelled=False).images

    return ReadImages(images, separate, further, asking)


def _split(config: RunConfig, read: ReadImages) -> TargetData:
    """The labelled, validation and test images of the config's seed."""
    choice, images, separate = config.data, read.images, read.test
    split_seed = derive_seed(config.seed, "split")
    num_test = None if choice.test_per_class == "all" else choice.test_per_class
    split = data.split_per_class(
        images.labels,
        images.class_names,
        train=None if choice.labels_per_class == "all" else choice.labels_per_class,
        validation=choice.validation_per_class,
        test=0 if separate else num_test,
        seed=split_seed,
    )
    test, unlabelled, rest = images.subset(split.test), read.unlabelled, None
    if choice.unlabelled == REST:
        rest = split.rest
        if not len(rest):
            raise UserError(
                f"the split of {choice.images!r} leaves no images to use as unlabelled ones; lower data.labels_per_class, "
                "data.validation_per_class or data.test_per_class"
            )
        unlabelled = ImageSet(images.subset(rest).images, *no_labels(len(rest)))
    if separate:
        chosen = data.split_per_class(
            separate.labels,
            separate.class_names,
            train=0,
            validation=0,
            test=num_test,
            seed=split_seed,
        )
        test = separate.subset(chosen.test)
    mean, std = (
        values * images.channels if len(values) == 1 else values
        for values in (choice.mean, choice.std)
    )
    return TargetData(
        images.subset(split.train),
        images.subset(split.validation),
        test,
        mean,
        std,
        unlabelled,
        None if read.read_asking is None else partial(read.read_asking, split.train, rest),
    )


def _check_networks(task: Task) -> None:
    """Try a tiny step of the target network, the export of its weights, and a forward of the source classifier.

    This reports a wrong size, or a network that would not survive saving and loading, before anything is trained.
    """
    images = task.data.train.images[:2].to(task.device)
    inputs = task.data.normalizer(task.device)(images)
    shape = "x".join(str(s) for s in images.shape[1:])
    name = f"target network {task.config.target.network}"
    with seeded(task.config.seed, "check"):
        with torch.no_grad(), _or_user_error(f"{name} does not take images of shape {shape}"):
            plain = task.plain_network().to(task.device).eval()
            returned = plain(inputs)
        models.class_scores(returned, (len(images), task.num_classes), name=name)
        with _or_user_error(
            f"{name} cannot be trained on images of shape {shape} with its head replaced"
        ):
            network = task.new_network()
            models.rehearse(network, inputs)
        state = decoded(encoded(network.export_state()))
        task.check_exported(network, plain, state, task.data.train)
    seen = "x".join(str(s) for s in task.source.form or ())
    with _or_user_error(f"source classifier does not take images of shape {seen}"):
        logits = task.source.classify(images)
    expected = len(images), task.source.num_classes
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        given = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"the source classifier returns {given}, expected logits {list(expected)}: the generator has {expected[1]} classes"
        )
    if models.are_probabilities(logits):
        raise UserError(
            "the source classifier returns probabilities, expected logits: remove the softmax at its end (log_softmax is accepted)"
        )


@contextmanager
def _or_user_error(what: str) -> Iterator[None]:
    """Turn any exception raised by a user's network into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} ({type(error).__name__}: {error}); choose another network"
        ) from error


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import importlib.metadata

    found = {
        "ptgm_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for package in ("triton", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
