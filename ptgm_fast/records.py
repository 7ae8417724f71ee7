"""JSON records with a schema: read and validated, with errors that say how to get a valid one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ptgm_fast.errors import UserError, first_problem


class Part(BaseModel):
    """A frozen model. An unknown key is an error: it would be a figure that is never shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, *, again: str) -> Any:
    """Read a JSON file. again: how to get a valid one, for messages. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(
            f"{str(path)!r} is not valid JSON ({error}): it was truncated or edited. {again}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}). {again}") from None


def read_record(path: Path, kind: type[Model], *, again: str, what: str = "record") -> Model:
    """Read a file as a `kind`. The default of its field `format` or `version`, if any, is the only accepted value.

    what: its name in messages ("profile"). again: how to get a valid one, for messages. Raises UserError if the file is
    missing or damaged, has another format or version, or does not match the schema.
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
            f"{str(path)!r} is not a ptgm-fast {what} (its format is not {only['format']!r}). {again}"
        )
    if "version" in only and given.get("version") != only["version"]:
        raise UserError(
            f"{str(path)!r} has version {given.get('version')!r}; this ptgm-fast reads version {only['version']}. "
            f"Read it with the ptgm-fast that wrote it, or: {again}"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, "the whole")
        raise UserError(f"{str(path)!r}: {problem}. {again}") from None
