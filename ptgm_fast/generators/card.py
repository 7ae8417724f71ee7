"""A generator's card: what a caller must know to use it, and a reader to trust it. Kept as card.json beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically

CARD_FILE = "card.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class FileCard(_Frozen):
    """One weights file: its SHA-256 in hexadecimal and its size."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)


class ClassifierCard(_Frozen):
    """The source classifier of the pair: a network by name (see `ptgm_fast.models`) for the generator's images."""

    architecture: str
    file: str = "classifier.safetensors"
    input_range: tuple[float, float] = (-1.0, 1.0)


class GeneratorCard(_Frozen):
    """Everything about a generator that its weights do not say.

    architecture: `conditional-batch-norm` is `ConditionalBatchNormGenerator`. output_range: the images' least and
    greatest value. condition: what the network mixes (`class-embedding`: rows of an embedding table).
    truncation: `scales-latents` multiplies the latents by the given number.
    """

    format: Literal[1] = 1
    name: str
    architecture: Literal["conditional-batch-norm"] = "conditional-batch-norm"
    num_classes: int = Field(ge=1)
    class_names: tuple[str, ...]
    latent_dim: int = Field(ge=1)
    embedding_dim: int = Field(ge=1)
    image_size: int = Field(ge=4, description="side in pixels")
    channels: Literal[1, 3]
    widths: tuple[int, ...] = Field(
        min_length=2, description="feature maps at each resolution, coarsest first"
    )
    output_range: tuple[float, float] = (-1.0, 1.0)
    condition: Literal["class-embedding"] = "class-embedding"
    truncation: Literal["scales-latents"] = "scales-latents"
    generator_file: str = "generator.safetensors"
    classifier: ClassifierCard | None = None
    files: dict[str, FileCard] = Field(default_factory=dict)
    data: str = Field(description="what it was trained on, in words")
    licences: tuple[str, ...] = Field(
        (), description="licences of the data, as their sources state them"
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="options, seeds, steps, seconds, versions"
    )
    figures: dict[str, Any] = Field(default_factory=dict, description="what was measured, and how")

    @model_validator(mode="after")
    def _consistent(self) -> GeneratorCard:
        if len(self.class_names) != self.num_classes:
            raise ValueError(
                f"class_names has {len(self.class_names)} entries for num_classes = {self.num_classes}"
            )
        return self


def read_card(folder: Path | str) -> GeneratorCard:
    """The card of a folder. Raises UserError if it is missing, damaged, or says what this version cannot read."""
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise UserError(
            f"generator folder {str(folder)!r} has no {CARD_FILE}; a folder made by `ptgm-fast source` holds one beside its weights"
        )
    try:
        return GeneratorCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the card"
        raise UserError(f"generator card {str(path)!r}: {place}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"generator card {str(path)!r} is damaged ({error})") from error


def write_card(card: GeneratorCard, folder: Path | str) -> None:
    """Write card.json atomically. Raises OSError on a failed write."""
    text = json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_atomically(Path(folder) / CARD_FILE, f"{text}\n".encode())
