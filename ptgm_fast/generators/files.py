"""What adapters read from disk: where a checkpoint's files are, their SHA-256, JSON configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ptgm_fast.errors import UserError, first_problem
from ptgm_fast.generators.card import FileCard
from ptgm_fast.models.weights import sha256

Model = TypeVar("Model", bound=BaseModel)


class NetworkConfig(BaseModel):
    """The arguments that a published network was built with: frozen, and one that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def find(place: Path, names: tuple[str, ...], *, what: str) -> Path:
    """The first of the names that a folder holds. Raises UserError naming all of them."""
    for name in names:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{what}: {str(place)!r} holds none of {', '.join(names)}")


def describe(path: Path, expected: str | None, *, what: str) -> FileCard:
    """A weights file's SHA-256 and size; raises UserError if it is missing or not the one expected."""
    if not path.is_file():
        raise UserError(f"{what}: file {str(path)!r} does not exist")
    found = sha256(path)
    if expected is not None and found != expected.lower():
        raise UserError(
            f"{what}: {str(path)!r} is not the file asked for (damaged or exchanged).\n"
            f"sha256 expected: {expected.lower()}\nsha256 found:    {found}"
        )
    if not (size := path.stat().st_size):
        raise UserError(f"{what}: {str(path)!r} is empty")
    return FileCard(sha256=found, bytes=size)


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """An object from a JSON file. Raises UserError if it is missing, damaged, or another thing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{what}: {str(path)!r} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{what}: {str(path)!r} holds no JSON object")
    return value


def validated(model: type[Model], values: dict[str, Any], *, where: str) -> Model:
    """A pydantic model of untrusted values; the UserError names the first field that does not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, 'values')}") from error
