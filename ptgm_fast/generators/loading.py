"""Generators and their source classifiers by URI. Local files only; weights are checked against the card before use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import torch
from torch import nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.card import CARD_FILE, Card, GeneratorCard, Soft, read_card
from ptgm_fast.generators.cbn import ConditionalBatchNormGenerator
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.files import describe
from ptgm_fast.generators.request import Request
from ptgm_fast.generators.uri import parse_uri
from ptgm_fast.models import weights
from ptgm_fast.models.build import build
from ptgm_fast.models.weights import load_weights

GENERATORS = {
    "letters": "the bundled pair: 52 Latin letters, 28x28 grey",
    "FOLDER": "a folder made by `ptgm-fast source` (card.json and safetensors); write ./letters for a folder of that name",
    "biggan-deep:DIR_OR_FILE": "BigGAN-deep in Hugging Face's layout (config.json and weights)",
    "biggan:FILE": "BigGAN in BigGAN-PyTorch's layout",
    "stylegan2-ada:FILE": "StyleGAN2-ADA with class labels, as `ptgm-fast convert` writes it",
    "stylegan3:FILE": "StyleGAN3 with class labels, as `ptgm-fast convert` writes it",
    "diffusers:DIR": "a class-conditional DiT pipeline saved by diffusers",
    "module:PACKAGE.MODULE:FACTORY": "a torch.nn.Module of your own, ?weights=FILE",
}
# Scheme: the module here that loads it, and its function.
ADAPTERS = {
    "biggan-deep": ("load_biggan", "load_biggan_deep"),
    "biggan": ("biggan", "load_biggan"),
    "stylegan2-ada": ("load_stylegan", "load_stylegan"),
    "stylegan3": ("load_stylegan", "load_stylegan"),
    "diffusers": ("dit", "load_dit"),
    "module": ("own_module", "load_own_module"),
}
ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = {"letters": ASSETS / "letters"}


def folder_of(uri: str) -> Path:
    """The folder that a generator URI means. Raises UserError for one that is neither bundled nor a folder with a card."""
    if uri in BUNDLED:
        return BUNDLED[uri]
    folder = Path(uri)
    if not folder.is_dir():
        accepted = "\n".join(f"  {name:<30} {what}" for name, what in GENERATORS.items())
        raise UserError(
            f"generator {uri!r} is neither bundled nor an existing folder. Accepted:\n{accepted}"
        )
    if not (folder / CARD_FILE).is_file():
        raise UserError(
            f"generator folder {uri!r} has no {CARD_FILE}; make one with `ptgm-fast source CONFIG`"
        )
    return folder


def load_card(uri: str) -> Card:
    """The card alone; of a folder, without reading weights. Raises UserError as `load` does."""
    return load(uri).card if _adapter(uri) else read_card(folder_of(uri))


def load(
    uri: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    soft: Soft | None = None,
    soft_seed: int = 0,
    sha256: str | None = None,
) -> Generator:
    """A frozen generator in evaluation mode, no parameter asking for a gradient.

    uri: see `GENERATORS`; options follow as ?name=value&name=value. soft, soft_seed, sha256 may also be options:
    soft says how a network that takes only class indices answers soft labels: "mix-embedding" mixes its class
    embeddings, "sample-class" draws a class a sample (see `soft.sample_classes`), None refuses them. sha256: what the
    weights file must have; a folder's card always states it.
    Raises UserError when files are missing, damaged, changed, hold code, or do not fit each other.
    """
    adapter = _adapter(uri)
    if adapter is None:
        generator: Generator = _load_folder(uri, soft, sha256)
    else:
        request = _request(uri, soft, soft_seed, sha256)
        generator = adapter(request)
        if request.soft == "sample-class" and generator.card.condition != "class-index":
            raise UserError(
                f"generator {uri!r} takes soft labels as they are; soft=sample-class would have no effect, leave it out"
            )
    return generator.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _adapter(uri: str) -> Callable[[Request], Generator] | None:
    """The loader of a URI's scheme; imported when asked for."""
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme not in ADAPTERS:
        return None
    module, function = ADAPTERS[scheme]
    return getattr(importlib.import_module(f"ptgm_fast.generators.{module}"), function)


def _request(uri: str, soft: Soft | None, soft_seed: int, sha256: str | None) -> Request:
    parsed = parse_uri(uri)
    chosen = soft or parsed.choice("soft", get_args(Soft), "")
    if chosen and chosen not in get_args(Soft):
        raise UserError(f"soft = {chosen!r} is unknown; accepted: {', '.join(get_args(Soft))}")
    expected = parsed.take("sha256")
    seed = parsed.number("soft_seed", soft_seed)
    licence = parsed.take("licence")
    if seed is None or not 0 <= seed < 2**64:
        raise UserError(f"generator {uri!r}: soft_seed must lie in [0, 2**64), got {seed}")
    return Request(
        parsed,
        sha256=sha256 or expected or None,
        soft=cast("Soft | None", chosen or None),
        soft_seed=int(seed),
        licences=(licence,) if licence else (),
    )


def _load_folder(
    uri: str, soft: Soft | None, expected: str | None
) -> ConditionalBatchNormGenerator:
    folder = folder_of(uri)
    card = read_card(folder)
    if soft == "sample-class":
        raise UserError(
            f"generator {uri!r} mixes class embeddings itself; soft='sample-class' would have no effect, leave it out"
        )
    path = _checked(folder, card, card.generator_file, "generator weights")
    if expected is not None:
        describe(path, expected, what="generator weights")
    try:
        generator = ConditionalBatchNormGenerator(card)
    except ValueError as error:
        raise UserError(f"generator card {str(folder / CARD_FILE)!r}: {error}") from error
    load_weights(generator, path, what="generator weights")
    return generator


def load_classifier(
    uri: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The source classifier beside a generator: frozen, evaluation mode; images in the card's input range -> logits.

    Raises UserError as `load` does, and when the pair has no classifier.
    """
    if _adapter(uri):
        raise UserError(
            f"generator {uri!r} comes without a source classifier; name one in the configuration"
        )
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
    found = weights.sha256(path)
    if found != expected.sha256:
        raise UserError(
            f"{what}: {str(path)!r} is not the file its card was written for (damaged or exchanged).\n"
            f"sha256 expected: {expected.sha256}\nsha256 found:    {found}\nCopy the folder again, or make the pair again."
        )
    return path
