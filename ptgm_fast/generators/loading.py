"""Generators and their source classifiers by URI. Local files only; weights are checked against the card before use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.card import CARD_FILE, GeneratorCard, read_card
from ptgm_fast.generators.cbn import ConditionalBatchNormGenerator
from ptgm_fast.models.build import build
from ptgm_fast.models.weights import load_weights, sha256

GENERATORS = {
    "letters": "the bundled pair: 52 Latin letters, 28x28 grey",
    "FOLDER": "a folder made by `ptgm-fast source` (card.json and safetensors); write ./letters for a folder of that name",
}
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = {"letters": ASSETS / "letters"}


def folder_of(uri: str) -> Path:
    """The folder that a generator URI means. Raises UserError for one that is neither bundled nor a folder with a card."""
    if uri in BUNDLED:
        return BUNDLED[uri]
    folder = Path(uri)
    if not folder.is_dir():
        accepted = "\n".join(f"  {name:<10} {what}" for name, what in GENERATORS.items())
        raise UserError(
            f"generator {uri!r} is neither bundled nor an existing folder. Accepted:\n{accepted}"
        )
    if not (folder / CARD_FILE).is_file():
        raise UserError(
            f"generator folder {uri!r} has no {CARD_FILE}; make one with `ptgm-fast source CONFIG`"
        )
    return folder


def load_card(uri: str) -> GeneratorCard:
    """The card alone: cheap, no weights are read. Raises UserError as `load` does."""
    return read_card(folder_of(uri))


def load(
    uri: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ConditionalBatchNormGenerator:
    """A frozen generator in evaluation mode, no parameter asking for a gradient.

    uri: see `GENERATORS`. The file's SHA-256 must be the card's. Raises UserError when the folder, its card or
    its weights are missing, damaged, changed, or do not fit each other.
    """
    folder = folder_of(uri)
    card = read_card(folder)
    path = _checked(folder, card, card.generator_file, "generator weights")
    try:
        generator = ConditionalBatchNormGenerator(card)
    except ValueError as error:
        raise UserError(f"generator card {str(folder / CARD_FILE)!r}: {error}") from error
    load_weights(generator, path, what="generator weights")
    return generator.to(device=device, dtype=dtype).freeze()


def load_classifier(
    uri: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The source classifier beside a generator: frozen, evaluation mode; images in the card's input range -> logits.

    Raises UserError as `load` does, and when the pair has no classifier.
    """
    folder = folder_of(uri)
    card = read_card(folder)
    if card.classifier is None:
        raise UserError(
            f"generator {uri!r} comes without a source classifier; name one in the configuration"
        )
    path = _checked(folder, card, card.classifier.file, "source classifier weights")
    classifier = build(
        card.classifier.architecture,
        num_classes=card.num_classes,
        channels=card.channels,
        image_size=card.image_size,
    )
    load_weights(classifier, path, what="source classifier weights")
    return classifier.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _checked(folder: Path, card: GeneratorCard, name: str, what: str) -> Path:
    """The path of a weights file whose bytes are those the card was written for."""
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"{what}: file {str(path)!r} is missing, though {CARD_FILE} names it; copy the whole folder again"
        )
    expected = card.files.get(name)
    if expected is None:
        raise UserError(
            f"{what}: {CARD_FILE} in {str(folder)!r} has no sha256 for {name!r}; make the pair again"
        )
    found = sha256(path)
    if found != expected.sha256:
        raise UserError(
            f"{what}: {str(path)!r} is not the file its card was written for (damaged or exchanged).\n"
            f"sha256 expected: {expected.sha256}\nsha256 found:    {found}\nCopy the folder again, or make the pair again."
        )
    return path
