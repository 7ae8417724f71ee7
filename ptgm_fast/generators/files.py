"""What is read from a folder of a generator's: which of its files, JSON, configurations checked by a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ptgm_fast.errors import UserError, first_problem

Model = TypeVar("Model", bound=BaseModel)


class PublishedConfig(BaseModel):
    """The arguments that a published network was built with: frozen, and one that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def find(place: Path, names: tuple[str, ...], *, what: str) -> Path:
    """The first of the names that a folder holds. Raises UserError naming all of them."""
    for name in names:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{what}: {str(place)!r} holds none of {', '.join(names)}")


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """An object from a JSON file. Raises UserError if it is missing, damaged, or another thing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{what}: {str(path)!r} is damaged or cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{what}: {str(path)!r} holds no JSON object")
    return value


def validated(model: type[Model], values: dict[str, Any], *, where: str) -> Model:
    """A pydantic model of untrusted values; the UserError names the first field that does not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, 'values')}") from error
