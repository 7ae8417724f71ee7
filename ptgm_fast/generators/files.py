"""Reading a generator's files: finding them in a folder, JSON, validated configurations, weights as authors save them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ptgm_fast.errors import UserError, first_problem
from ptgm_fast.models.weights import read_state

Model = TypeVar("Model", bound=BaseModel)


class PublishedConfig(BaseModel):
    """The arguments that a published network was built with. Frozen; an unknown argument is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@contextmanager
def plain_containers() -> Iterator[None]:
    """Within the block, weights files may also hold a training script's arguments, in these types: they hold no code."""
    with torch.serialization.safe_globals([argparse.Namespace, SimpleNamespace, PosixPath]):
        yield


def read_weights(path: Path | str, *, what: str) -> dict[str, Tensor]:
    """Memory-map a published generator's state dict: FILE, or FILE#NAME for one of several networks in it.

    See `models.weights.read_state`. Prefixes that wrappers add to every name (`module.`, `_orig_mod.`) are stripped.
    """
    with plain_containers():
        state = read_state(path, what=what, mapped=True)
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def find(place: Path, names: tuple[str, ...], *, what: str) -> Path:
    """The first of `names` that exists in a folder. Raises UserError, listing all of them, if none does."""
    for name in names:
        if (place / name).is_file():
            return place / name
    raise UserError(f"{what}: {str(place)!r} holds none of {', '.join(names)}")


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Read an object from a JSON file. Raises UserError if the file is missing, damaged, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{what}: {str(path)!r} is damaged or cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{what}: {str(path)!r} holds no JSON object")
    return value


def validated(model: type[Model], values: dict[str, Any], *, where: str) -> Model:
    """Validate untrusted values as a pydantic model; the UserError names the first field that does not fit."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error, 'values')}") from error
