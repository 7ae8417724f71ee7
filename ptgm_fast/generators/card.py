"""A generator's card: what callers need to use it, and readers to trust it. Stored as card.json beside the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ptgm_fast.errors import UserError
from ptgm_fast.generators.files import read_json, validated
from ptgm_fast.models.weights import sha256, write_atomically

CARD_FILE = "card.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class FileCard(_Frozen):
    """One weights file: its SHA-256 in hexadecimal and its size."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)

    @classmethod
    def of(cls, path: Path, expected: str | None, *, what: str) -> Self:
        """The card of a file on disk. Raises UserError if the file is missing, is empty or does not have this SHA-256."""
        if not path.is_file():
            raise UserError(f"{what}: file {str(path)!r} does not exist")
        found = sha256(path)
        if expected is not None and found != expected.lower():
            raise UserError(
                f"{what}: {str(path)!r} is not the expected file: it is damaged or was replaced; copy it again.\n"
                f"sha256 expected: {expected.lower()}\nsha256 found:    {found}"
            )
        if not (size := path.stat().st_size):
            raise UserError(f"{what}: {str(path)!r} is empty")
        return cls(sha256=found, bytes=size)


class ClassifierCard(_Frozen):
    """The source classifier of the pair: a network by name (see `ptgm_fast.models`) for the generator's images."""

    architecture: str
    file: str = "classifier.safetensors"
    input_range: tuple[float, float] = (-1.0, 1.0)


Condition = Literal["class-index", "class-embedding", "soft-vector"]
Truncation = Literal["scales-latents", "selects-statistics", "interpolates-styles", "none"]
Soft = Literal["mix-embedding", "sample-class"]


class Card(_Frozen):
    """What a caller must know about any conditional generator.

    output_range: the images' minimum and maximum value. condition: what the network takes: `class-index` int64 [N],
    `class-embedding` (mixed) rows of an embedding table [N, D], `soft-vector` one-hot or soft labels [N, K].
    truncation, for a number t in (0, 1]: `scales-latents` multiplies the latents by t; `selects-statistics` leaves the
    latents unchanged (they are drawn truncated) and uses batch norm statistics collected at t; `interpolates-styles`
    leaves the latents unchanged (they are drawn untruncated) and moves the mapping network's output towards its mean;
    `none`: the generator has no truncation.
    """

    name: str
    architecture: str
    num_classes: int = Field(ge=1)
    class_names: tuple[str, ...]
    latent_dim: int = Field(ge=1, description="elements of one latent, whatever its shape")
    image_size: int = Field(ge=4, description="side in pixels")
    channels: Literal[1, 3]
    output_range: tuple[float, float] = (-1.0, 1.0)
    condition: Condition
    truncation: Truncation
    licences: tuple[str, ...] = Field(
        (), description="licences of the data and weights, as their sources state them"
    )
    files: dict[str, FileCard] = Field(default_factory=dict)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent: (latent_dim,), or (C, H, W) for the noise of a diffusion model."""
        return (self.latent_dim,)

    @property
    def soft_labels(self) -> str:
        """How a soft label is handled: mixed natively, by the user's choice, or refused."""
        return {"class-embedding": "mix-embedding", "soft-vector": "soft-vector"}.get(
            self.condition, "refused"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} entries for num_classes = {self.num_classes}"
            )
        return self


class AdapterCard(Card):
    """The card of a generator that came without one: an adapter fills it in from the URI, configuration and weights.

    soft, soft_seed: how a network that takes only class indices handles a soft label, and the seed of its draws.
    settings: the adapter's own options (sampling steps, guidance, ...).
    """

    grid: tuple[int, ...] | None = Field(
        None, description="shape of one latent, unless it is a vector"
    )
    embedding_dim: int | None = Field(None, ge=1)
    soft: Soft | None = None
    soft_seed: int = Field(0, ge=0, lt=2**64)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.grid or (self.latent_dim,)

    @property
    def soft_labels(self) -> str:
        return self.soft or super().soft_labels

    @model_validator(mode="after")
    def _grid_holds_the_latent(self) -> Self:
        if math.prod(self.latent_shape) != self.latent_dim:
            raise ValueError(
                f"latent shape {self.grid} does not hold latent_dim = {self.latent_dim}"
            )
        return self


class GeneratorCard(Card):
    """Everything about a folder made by `ptgm-fast source` that its weights do not say.

    architecture: `conditional-batch-norm` is `ConditionalBatchNormGenerator`, which mixes rows of an embedding table.
    """

    format: Literal[1] = 1
    architecture: Literal["conditional-batch-norm"] = "conditional-batch-norm"
    embedding_dim: int = Field(ge=1)
    widths: tuple[int, ...] = Field(
        min_length=2, description="feature maps at each resolution, coarsest first"
    )
    condition: Literal["class-embedding"] = "class-embedding"
    truncation: Literal["scales-latents"] = "scales-latents"
    generator_file: str = "generator.safetensors"
    classifier: ClassifierCard | None = None
    data: str = Field(description="what it was trained on, in words")
    training: dict[str, Any] = Field(
        default_factory=dict, description="options, seeds, steps, seconds, versions"
    )
    figures: dict[str, Any] = Field(default_factory=dict, description="what was measured, and how")


def read_card(folder: Path | str) -> GeneratorCard:
    """Read a folder's card. Raises UserError if it is missing, damaged, or not readable by this version."""
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise UserError(
            f"generator folder {str(folder)!r} has no {CARD_FILE}; a folder made by `ptgm-fast source` holds one beside its weights"
        )
    what = "generator card"
    return validated(GeneratorCard, read_json(path, what=what), where=f"{what} {str(path)!r}")


def write_card(card: GeneratorCard, folder: Path | str) -> None:
    """Write card.json atomically. Raises OSError on a failed write."""
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(Path(folder) / CARD_FILE, f"{text}\n".encode())
