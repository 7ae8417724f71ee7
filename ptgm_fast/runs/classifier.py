"""The source classifier of a config: the network, its weights, and its input preprocessing."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ptgm_fast import generators, models
from ptgm_fast.config import RunConfig
from ptgm_fast.config.run import ClassifierConfig, is_trained_here
from ptgm_fast.data import Fit
from ptgm_fast.errors import UserError
from ptgm_fast.models import Preprocessing
from ptgm_fast.sampling import seeded


def load_classifier(
    config: RunConfig, card: generators.Card, on_notice: Callable[[str], None]
) -> nn.Module:
    """Build C_s and load its weights, for inputs as described by `seen_by_classifier`.

    on_notice(message) receives the input format and what `models.load_weights` found.
    """
    choice = config.source.classifier
    if is_trained_here(config):
        # The weights come later, from `own_classifier.train_classifier`.
        with seeded(config.source.training.seed, "source classifier/init"):
            return models.build(
                config.source.training.network,
                num_classes=card.num_classes,
                channels=card.channels,
                image_size=card.image_size,
            )
    if not choice.network:
        return generators.load_classifier(config.source.generator)
    seen = seen_by_classifier(choice, card)
    on_notice(f"source classifier {choice.network} sees {seen}{_whence(choice)}")
    classifier = models.build(
        choice.network,
        num_classes=card.num_classes,
        channels=seen.channels,
        image_size=seen.image_size,
    )
    models.load_weights(classifier, choice.weights, what="source classifier", on_notice=on_notice)
    return classifier


def seen_by_classifier(choice: ClassifierConfig, card: generators.Card) -> Preprocessing:
    """The preprocessing of C_s: from the config, which includes what the network states; else the generator's form and 0.5/0.5.

    Raises UserError if the statistics have another number of channels.
    """
    said = {name: value for name, value in choice.preprocessing.items() if value != "network"}
    seen = Preprocessing(**{"image_size": card.image_size, "channels": card.channels, **said})
    for which in ("mean", "std"):
        values = getattr(seen, which)
        if len(values) not in (1, seen.channels):
            raise UserError(
                f"source.classifier.{which} has {len(values)} values for images with {seen.channels} channel(s); give 1 or {seen.channels}"
            )
    return seen


def as_files(seen: Preprocessing) -> Fit:
    """How image files are converted to inputs of C_s."""
    return Fit(seen.image_size, seen.crop, seen.interpolation)


def _whence(choice: ClassifierConfig) -> str:
    """Text that names the assumed values: those given by neither the config nor the network itself."""
    assumed = [
        name for name in ("image_size", "mean", "std") if choice.preprocessing[name] == "network"
    ]
    if not assumed:
        return ""
    settings = ", ".join(f"source.classifier.{name}" for name in assumed)
    return f": the generator's size and 0.5/0.5, since the network states none; set {settings} if it was trained differently"
