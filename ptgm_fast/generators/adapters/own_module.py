"""`module:package.module:factory?weights=FILE`: any torch.nn.Module as a `Generator`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.adapters.own_checks import look_at, raised
from ptgm_fast.generators.card import AdapterCard, FileCard
from ptgm_fast.generators.files import plain_containers
from ptgm_fast.generators.request import Request
from ptgm_fast.generators.soft import class_tables, mixing
from ptgm_fast.models.build import checked_module, import_factory
from ptgm_fast.models.checkpoints import split_choice
from ptgm_fast.models.weights import load_weights

CONDITIONS = ("class-index", "class-embedding", "soft-vector")
SIZES = ("num_classes", "latent_dim", "embedding_dim")


class OwnModule(AdaptedGenerator):
    """Calls network(latents [N, *latent_shape], condition); the card says what the condition is.

    A network that takes class indices also takes soft labels [N, K] if its embeddings are mixed.
    """

    card: AdapterCard

    def __init__(self, card: AdapterCard, network: nn.Module) -> None:
        super().__init__()
        self.card, self.network = card, network

    @property
    def _num_rows(self) -> int:
        """The number of rows of the class tables."""
        return table_rows(self.card.num_classes, self.card.settings.get("null_class"))

    @property
    def class_table(self) -> Tensor | None:
        if self.card.condition != "class-embedding":
            return None
        return class_tables(self.network, self._num_rows)[0].weight[: self.card.num_classes]

    def forward(self, latents: Tensor, condition: Tensor) -> Tensor:
        if self.card.condition != "class-index" or condition.dim() == 1:
            return self.network(latents, condition)
        with mixing(self.network, condition, self._num_rows) as indices:
            return self.network(latents, indices)

    def synthesize(self, latents: Tensor, condition: Tensor, truncation: float | None) -> Tensor:
        if self.card.soft == "mix-embedding" and condition.dim() == 1:
            # Always the same form, the one that a rewrite is traced for: a mixture of one class is its row, bit for bit.
            condition = F.one_hot(condition, self.card.num_classes)
        if self.card.soft == "mix-embedding":
            condition = condition.to(latents.dtype)
        return self(latents, condition)


def table_rows(num_classes: int, null_class: int | None) -> int:
    """Rows of a class table: one per class, and those up to the null class, which is never mixed."""
    return num_classes if null_class is None else null_class + 1


def load(request: Request) -> OwnModule:
    """Import the user's module, build it, load weights strictly, and make a few images to find out their size.

    Each number on the card comes from the URI, or else from the network's attribute of that name.
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
    stated = "output_range" in request.options or hasattr(network, "output_range")
    null_class = request.whole("null_class", getattr(network, "null_class", None))
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
        with plain_containers():
            load_weights(network, weights, what=what, on_notice=request.on_notice)
    elif request.sha256:
        raise UserError(f"{what}: sha256 is given without weights=FILE to check")
    num_classes = values["num_classes"]
    if null_class is not None and null_class < num_classes:
        raise UserError(
            f"{what}: null_class = {null_class} is one of the {num_classes} classes; it must be a row after them"
        )
    if condition == "class-embedding" or request.soft == "mix-embedding":
        rows = table_rows(num_classes, null_class)
        tables = class_tables(network, rows)
        if not tables or (condition == "class-embedding" and len(tables) > 1):
            has = "exactly one for condition=class-embedding" if tables else _tables(network)
            sizes = f"num_classes = {rows}" if null_class is None else f"null_class + 1 = {rows}"
            raise UserError(
                f"{what}: embeddings can be mixed only with a torch.nn.Embedding of {sizes} rows ({has})"
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
        "settings": {} if null_class is None else {"null_class": null_class},
        "image_size": 4,
        **values,
    }
    if (names := getattr(network, "class_names", None)) is not None:
        fields["class_names"] = tuple(map(str, names))
    generator = OwnModule(request.card(**fields), network)
    size, channels = look_at(generator.eval(), what, stated=stated, on_notice=request.on_notice)
    generator.card = request.card(**fields | {"image_size": size, "channels": channels})
    return generator


def _build(target: str, what: str) -> nn.Module:
    """Build the user's module. Anything that this raises, including SystemExit, becomes a UserError."""
    try:
        factory = import_factory(target, what=what)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: importing {target} failed ({raised(error)})") from error
    try:
        network = factory()
    except (Exception, SystemExit) as error:
        needs = "; it is called without arguments" if isinstance(error, TypeError) else ""
        raise UserError(f"{what}: making {target} failed ({raised(error)}){needs}") from error
    return checked_module(network, what=what)


def _tables(network: nn.Module) -> str:
    """The tables that a network has instead, and what to do about an extra row."""
    sizes = sorted({m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)})
    if not sizes:
        return "the network has none"
    return (
        f"the network has tables of {', '.join(map(str, sizes))} rows; name the row of a null class, which is not mixed, "
        "with null_class=ROW"
    )


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
