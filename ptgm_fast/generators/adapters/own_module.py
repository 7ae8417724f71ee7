"""`module:package.module:factory?weights=FILE`: anyone's torch.nn.Module behind the contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.card import AdapterCard, FileCard
from ptgm_fast.generators.request import Request
from ptgm_fast.generators.soft import class_tables, mixing
from ptgm_fast.models.build import checked_module, import_factory
from ptgm_fast.models.checkpoints import split_choice
from ptgm_fast.models.weights import load_weights

CONDITIONS = ("class-index", "class-embedding", "soft-vector")
SIZES = ("num_classes", "latent_dim", "embedding_dim")


class OwnModule(AdaptedGenerator):
    """Calls network(latents [N, *latent_shape], condition); the card says what the condition is."""

    def __init__(self, card: AdapterCard, network: nn.Module) -> None:
        super().__init__()
        self.card, self.network = card, network

    @property
    def class_table(self) -> Tensor | None:
        if self.card.condition != "class-embedding":
            return None
        return class_tables(self.network, self.card.num_classes)[0].weight

    def forward(self, latents: Tensor, condition: Tensor) -> Tensor:
        return self.network(latents, condition)

    def synthesize(self, latents: Tensor, condition: Tensor, truncation: float | None) -> Tensor:
        if self.card.condition != "class-index" or condition.dim() == 1:
            return self(latents, condition)
        with mixing(self.network, condition.to(latents.dtype)) as indices:
            return self(latents, indices)


def load(request: Request) -> OwnModule:
    """Import the module that the user named, build, load weights strictly, and make one image to read its size.

    Each number of the card comes from the URI, or else from the attribute of that name on the network.
    """
    what = request.what
    network = _build(request.target, what)
    values: dict[str, Any] = {}
    for name in SIZES:
        if (value := request.whole(name, getattr(network, name, None))) is not None:
            values[name] = value
    condition = request.choice(
        "condition", CONDITIONS, getattr(network, "condition", "soft-vector")
    )
    truncation = request.choice("truncation", ("scales-latents", "none"), "scales-latents")
    shape = _shape(request.take("latent_shape"), what) or getattr(network, "latent_shape", None)
    output = _range(request.take("output_range"), what) or getattr(
        network, "output_range", (-1.0, 1.0)
    )
    weights = request.take("weights")
    request.done()
    if shape and "latent_dim" not in values:
        values["latent_dim"] = int(torch.Size(shape).numel())
    if missing := [name for name in SIZES[:2] if name not in values]:
        raise UserError(
            f"{what}: the network has no attribute {missing[0]!r}; set it in the class, or write ?{missing[0]}=NUMBER"
        )
    files = {}
    if weights:
        file, _ = split_choice(weights)
        files[file.name] = FileCard.of(file, request.sha256, what=what)
        load_weights(network, weights, what=what)
    elif request.sha256:
        raise UserError(f"{what}: sha256 is given without weights=FILE to check")
    num_classes = values["num_classes"]
    if condition == "class-embedding" or request.soft == "mix-embedding":
        tables = class_tables(network, num_classes)
        if not tables or (condition == "class-embedding" and len(tables) > 1):
            raise UserError(
                f"{what}: embeddings can be mixed only with a torch.nn.Embedding of num_classes = {num_classes} rows "
                f"({'exactly one for condition=class-embedding' if tables else 'the network has none'})"
            )
        if condition == "class-embedding":
            values["embedding_dim"] = tables[0].embedding_dim
    fields = {
        "name": request.target,
        "architecture": f"module:{request.target}",
        "condition": condition,
        "truncation": truncation,
        "grid": shape,
        "output_range": output,
        "files": files,
        "soft": request.soft,
        "soft_seed": request.soft_seed,
        "image_size": 4,
        **values,
    }
    if (names := getattr(network, "class_names", None)) is not None:
        fields["class_names"] = tuple(map(str, names))
    generator = OwnModule(request.card(**fields), network)
    size, channels = _probe(generator, what)
    generator.card = request.card(**fields | {"image_size": size, "channels": channels})
    return generator


def _probe(generator: OwnModule, what: str) -> tuple[int, int]:
    """Side and channels of one image. Raises UserError if the network cannot make a square one."""
    card = generator.card
    generator.eval()
    try:
        with torch.no_grad():
            images = generator.generate(
                torch.zeros(1, *card.latent_shape), torch.zeros(1, dtype=torch.int64)
            )
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"{what}: the network failed on latents {[1, *card.latent_shape]} and a {card.condition} condition "
            f"({type(error).__name__}: {error}); its forward takes (latents, condition)"
        ) from error
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[2] != images.shape[3]:
        shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"{what}: the network returned {shape}; expected square images [N, C, S, S]"
        )
    return images.shape[2], images.shape[1]


def _build(target: str, what: str) -> nn.Module:
    factory = import_factory(target, what=what)
    try:
        network = factory()
    except TypeError as error:
        raise UserError(f"{what}: {target} must be callable without arguments ({error})") from error
    return checked_module(network, what=what)


def _shape(text: str, what: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in text.split(",")) if text else None
    except ValueError as error:
        raise UserError(f"{what}: latent_shape is written 100,1,1, got {text!r}") from error


def _range(text: str, what: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        least, greatest = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"{what}: output_range is written 0,1, got {text!r}") from error
    return least, greatest
