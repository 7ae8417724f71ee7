"""Files of figures: JSON with a format, a version and a schema, read back or refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ptgm_fast.errors import UserError, first_problem


class Part(BaseModel):
    """Frozen; an unknown key is an error: it would be a figure that nobody shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Record = TypeVar("Record", bound=Part)


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


def read_record(path: Path, kind: type[Record], *, what: str, again: str) -> Record:
    """The file as a `kind`, a model whose fields `format` and `version` have their only values as defaults.

    what: its name in a message ("profile"). again: how to get a good one. Raises UserError when the file is missing,
    damaged, of another format or version, or against the schema.
    """
    values = read_json(path, again=again)
    name, version = (kind.model_fields[key].default for key in ("format", "version"))
    if not isinstance(values, dict) or values.get("format") != name:
        raise UserError(f"{str(path)!r} is no {what} of ptgm-fast (no format {name!r}). {again}")
    if values.get("version") != version:
        raise UserError(
            f"{str(path)!r} is a {what} of version {values.get('version')!r}; this ptgm-fast reads version {version}. "
            f"Read it with the version that wrote it, or make it anew: {again}"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, "the whole")
        raise UserError(f"{str(path)!r}: {problem}. {again}") from None
