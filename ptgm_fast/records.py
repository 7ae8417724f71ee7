"""Records: JSON with a schema, read back or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ptgm_fast.errors import UserError, first_problem


class Part(BaseModel):
    """Frozen; an unknown key is an error: it would be a figure that nobody shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, *, again: str) -> Any:
    """A file's JSON. again: how to get a good one. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is not whole JSON ({error}): it was cut off or edited. {again}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}). {again}") from None


def read_record(path: Path, kind: type[Model], *, again: str, what: str = "record") -> Model:
    """The file as a `kind`; a field `format` or `version` of it has its only value as default.

    what: its name in a message ("profile"). again: how to get a good one. Raises UserError when the file is missing,
    damaged, of another format or version, or against the schema.
    """
    values = read_json(path, again=again)
    given = values if isinstance(values, dict) else {}
    only = {
        name: kind.model_fields[name].default
        for name in ("format", "version")
        if name in kind.model_fields
    }
    if "format" in only and given.get("format") != only["format"]:
        raise UserError(
            f"{str(path)!r} is no {what} of ptgm-fast (no format {only['format']!r}). {again}"
        )
    if "version" in only and given.get("version") != only["version"]:
        raise UserError(
            f"{str(path)!r} is of version {given.get('version')!r}; this ptgm-fast reads version {only['version']}. "
            f"Read it with the ptgm-fast that wrote it, or: {again}"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, "the whole")
        raise UserError(f"{str(path)!r}: {problem}. {again}") from None
