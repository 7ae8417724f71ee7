"""Generators and their source classifiers by URI. Local files only; weights are checked against the card before use."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapters import ADAPTERS
from ptgm_fast.generators.card import CARD_FILE, Card, FileCard, GeneratorCard, Soft, read_card
from ptgm_fast.generators.cbn import ConditionalBatchNormGenerator
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.request import Request, parse
from ptgm_fast.models.build import build
from ptgm_fast.models.weights import load_weights

GENERATORS = {
    "letters": "the bundled pair: 52 Latin letters, 28x28 gray",
    "FOLDER": "a folder made by `ptgm-fast source` (card.json and safetensors); write ./letters for a folder of that name",
    **{f"{scheme}:{place}": what for scheme, (_, place, what) in ADAPTERS.items()},
}
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = {"letters": ASSETS / "letters"}


def folder_of(uri: str) -> Path:
    """The folder that a generator URI refers to. Raises UserError if it is neither bundled nor a folder."""
    if uri in BUNDLED:
        return BUNDLED[uri]
    folder = Path(uri)
    if not folder.is_dir():
        accepted = "\n".join(f"  {name:<30} {what}" for name, what in GENERATORS.items())
        raise UserError(
            f"generator {uri!r} is neither bundled nor an existing folder. Accepted:\n{accepted}"
        )
    return folder


def load_card(uri: str) -> Card:
    """A generator's card alone; for a folder, without reading weights. Raises UserError as `load` does."""
    return load(uri).card if _adapter(uri) else read_card(folder_of(uri))


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def load(
    uri: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    soft: Soft | None = None,
    soft_seed: int = 0,
    sha256: str | None = None,
    on_notice: Callable[[str], None] = _warn,
) -> Generator:
    """Load a frozen generator: in evaluation mode, with no parameter that requires a gradient.

    uri: see `GENERATORS`; options follow as ?name=value&name=value. soft, soft_seed and sha256 may also be given there.
    soft: how a network that takes only class indices handles soft labels: "mix-embedding" mixes its class embeddings,
    "sample-class" draws one class per sample (see `soft.sample_classes`), None refuses them. sha256: that of the weights
    file; a folder's card always states it. on_notice(message): called when a user's module does something that is most
    likely unintended; by default, a warning.
    Raises UserError if files are missing, damaged or changed, hold code, or do not fit each other.
    """
    adapter = _adapter(uri)
    if adapter is None:
        generator: Generator = _load_folder(uri, sha256)
    else:
        request = parse(uri, soft=soft, soft_seed=soft_seed, sha256=sha256, on_notice=on_notice)
        generator = adapter(request)
        soft = request.soft
    if soft == "sample-class" and generator.card.condition != "class-index":
        raise UserError(
            f"generator {uri!r} takes soft labels as they are; soft=sample-class would have no effect, leave it out"
        )
    return generator.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _adapter(uri: str) -> Callable[[Request], Generator] | None:
    """The loader for a URI's scheme, imported on demand; None for a URI without an adapter."""
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in ADAPTERS:
        return None
    module = importlib.import_module(f"ptgm_fast.generators.adapters.{ADAPTERS[scheme][0]}")
    loader: Callable[[Request], Generator] = module.load
    return loader


def _load_folder(uri: str, expected: str | None) -> ConditionalBatchNormGenerator:
    folder = folder_of(uri)
    card = read_card(folder)
    what = "generator weights"
    path = _checked(folder, card, card.generator_file, what)
    if expected is not None:
        FileCard.of(path, expected, what=what)
    try:
        generator = ConditionalBatchNormGenerator(card)
    except ValueError as error:
        raise UserError(f"generator card {str(folder / CARD_FILE)!r}: {error}") from error
    load_weights(generator, path, what=what)
    return generator


def load_classifier(
    uri: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Load the source classifier beside a generator: frozen, evaluation mode; images in the card's input range -> logits.

    Raises UserError as `load` does, and if there is no classifier.
    """
    card = None if _adapter(uri) else read_card(folder_of(uri))
    if card is None or card.classifier is None:
        raise UserError(
            f"generator {uri!r} comes without a source classifier; name one in the configuration"
        )
    what = "source classifier weights"
    path = _checked(folder_of(uri), card, card.classifier.file, what)
    classifier = build(
        card.classifier.architecture,
        num_classes=card.num_classes,
        channels=card.channels,
        image_size=card.image_size,
    )
    load_weights(classifier, path, what=what)
    return classifier.to(device=device, dtype=dtype).eval().requires_grad_(False)


def has_classifier(uri: str) -> bool:
    """Whether there is a classifier beside the generator for `load_classifier`."""
    return _adapter(uri) is None and read_card(folder_of(uri)).classifier is not None


def _checked(folder: Path, card: GeneratorCard, name: str, what: str) -> Path:
    """The path of a weights file, verified against the SHA-256 in the card."""
    if name not in card.files:
        raise UserError(
            f"{what}: {CARD_FILE} in {str(folder)!r} has no sha256 for {name!r}; make the pair again"
        )
    path = folder / name
    FileCard.of(path, card.files[name].sha256, what=f"{what} that {CARD_FILE} names")
    return path
