"""From a config to the things a run needs: data, source pair, target networks; whatever does not fit is said here."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ptgm_fast import __version__, data, generators, models
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.sampling import SourceModels, derive_seed, seeded
from ptgm_fast.training.target import TargetData


@dataclass(frozen=True)
class Task:
    """A config with its data and its frozen source pair, all shapes checked."""

    config: RunConfig
    device: torch.device
    source: SourceModels
    data: TargetData

    @property
    def num_classes(self) -> int:
        return self.data.train.num_classes

    def new_network(self) -> models.TargetNetwork:
        """A target network from its random initialization, with the fresh heads ``target`` and ``source``.

        Every method of a seed starts from the same weights.
        """
        name, seed = self.config.target.network, self.config.seed
        height, _ = self.data.train.image_size
        with seeded(seed, "init/network"):
            network = models.build(
                name,
                num_classes=self.num_classes,
                channels=self.data.train.channels,
                image_size=height,
            )
            target = models.TargetNetwork(network, num_classes=self.num_classes, name=name)
        with seeded(seed, "init/target head"):
            target.set_head("target", self.num_classes)
        with seeded(seed, "init/source head"):
            target.set_head("source", self.source.num_classes)
        return target.to(self.device).to(memory_format=torch.channels_last)


def build_task(
    config: RunConfig,
    source: SourceModels | None = None,
    on_notice: Callable[[str], None] = lambda message: None,
) -> Task:
    """Load what the config names; `source` is its source pair, if that is there already. on_notice: see `data.load`.

    Raises UserError where something is missing or does not fit together.
    """
    source = source or build_source(config, on_notice)
    card = source.generator.card
    _check_shapes(config, card)
    target = _load_target_data(config, card.channels, card.image_size, on_notice)
    task = Task(config, source.device, source, target)
    _check_networks(task)
    return task


def build_source(
    config: RunConfig, on_notice: Callable[[str], None] = lambda message: None
) -> SourceModels:
    """The frozen generator and source classifier of a config, on its device; on_notice: see `generators.load` and `optimize`."""
    device = choose_device(config.device)
    choice = config.source.classifier
    truncation = config.source.truncation or None
    generator = generators.load(config.source.generator, device=device, on_notice=on_notice)
    classifier = _load_classifier(config, generator.card)
    optimized = None
    if config.source.optimize:
        optimized = generators.optimize(generator, truncation=truncation, on_notice=on_notice)
        assert isinstance(optimized.module, generators.Generator)
        generator = optimized.module
    return SourceModels(
        generator,
        classifier,
        optimized=optimized,
        mean=choice.mean,
        std=choice.std,
        truncation=truncation,
        device=device,
    )


def _check_shapes(config: RunConfig, card: generators.Card) -> None:
    size, channels = card.image_size, card.channels
    asked = {
        "image_size": (config.data.image_size, size),
        "channels": (config.data.channels, channels),
    }
    for name, (value, made) in asked.items():
        if value not in ("generator", made):
            raise UserError(
                f"data.{name} = {value} does not fit the generator {config.source.generator!r}, which makes "
                f"{size}x{size} images with {channels} channel(s); leave data.{name} out or set it to {made}"
            )
    tables = {"data": config.data, "source.classifier": config.source.classifier}
    for name, values in (
        (f"{place}.{which}", getattr(table, which))
        for place, table in tables.items()
        for which in ("mean", "std")
    ):
        if len(values) not in (1, channels):
            raise UserError(
                f"{name} has {len(values)} values for images with {channels} channel(s); give 1 or {channels}"
            )


def choose_device(name: str) -> torch.device:
    """ "auto" is the first CUDA device, else the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # To the host and back: "meta" makes tensors, but they hold nothing.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f'device {name!r} cannot be used here ({error}); "cpu" always works'
        ) from error
    return device


def _load_classifier(config: RunConfig, card: generators.Card) -> torch.nn.Module:
    choice = config.source.classifier
    if not choice.network:
        return generators.load_classifier(config.source.generator)
    classifier = models.build(
        choice.network,
        num_classes=card.num_classes,
        channels=card.channels,
        image_size=card.image_size,
    )
    models.load_weights(classifier, choice.weights, what="source classifier")
    return classifier


def _load_target_data(
    config: RunConfig, channels: int, size: int, on_notice: Callable[[str], None]
) -> TargetData:
    choice = config.data
    load = partial(data.load, channels=channels, image_size=size, on_notice=on_notice)
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
    test = images.subset(split.test)
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
        values * channels if len(values) == 1 else values for values in (choice.mean, choice.std)
    )
    return TargetData(images.subset(split.train), images.subset(split.validation), test, mean, std)


def _check_networks(task: Task) -> None:
    """One tiny forward of each network, so that a wrong size is said before anything is trained."""
    images = task.data.train.images[:2].to(task.device)
    network = task.new_network().eval()
    for name, forward in (
        ("target network " + task.config.target.network, network),
        ("source classifier", task.source.classify),
    ):
        try:
            with torch.no_grad():
                logits = forward(images if forward is not network else images.float() / 255)
        except (RuntimeError, AssertionError, ValueError) as error:
            shape = "x".join(str(s) for s in images.shape[1:])
            raise UserError(
                f"{name} does not take images of shape {shape} ({error}); choose another network"
            ) from error
    if logits.shape != (len(images), task.source.num_classes):
        raise UserError(
            f"the source classifier gives {logits.shape[-1]} classes, but the generator has {task.source.num_classes}"
        )


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
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
