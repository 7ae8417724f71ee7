"""TOML to config and back. Errors name the setting, what it accepts and the closest known name."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from ptgm_fast.config.run import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.training.source import SourceOptions

Model = TypeVar("Model", bound=BaseModel)


def load_config(
    path: Path | str | None = None, overrides: list[str] | None = None, seed: int | None = None
) -> RunConfig:
    """Load a run config from a TOML file (without one: the bundled task), with `key=value` overrides and a seed applied.

    Raises UserError for a file that cannot be read and for settings that cannot be used.
    """
    return _load(RunConfig, path, overrides or [], {} if seed is None else {"seed": seed})


def load_source_config(
    path: Path | str | None, overrides: list[str] | None = None, seed: int | None = None
) -> SourceOptions:
    """Load the config of a source pair's training, like `load_config`."""
    return _load(SourceOptions, path, overrides or [], {} if seed is None else {"seed": seed})


def config_to_toml(config: BaseModel) -> str:
    """The complete config as TOML. Loading it returns an equal config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _load(
    model: type[Model], path: Path | str | None, overrides: list[str], extra: dict[str, Any]
) -> Model:
    values = _read(Path(path)) if path else {}
    for override in overrides:
        _apply(values, override)
    values.update(extra)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(
            _explain(error, model, str(path) if path else "the settings given")
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows write a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"config file {str(path)!r} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"config file {str(path)!r} is not UTF-8 ({error}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"config file {str(path)!r} cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"config file {str(path)!r} is not valid TOML: {error}") from None


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key: `p_ssl.weight=0.3`. The value is parsed as TOML, or taken as a string if it is not valid TOML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes key=value, for example p_ssl.weight=0.3; got {override!r}")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    table = values
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise UserError(f"--set {override!r}: {parent!r} is a value, not a table of settings")
    table[last] = value


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = [f"{where}: {error.error_count()} setting(s) cannot be used:"]
    for problem in error.errors():
        place = tuple(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {'.'.join(place)}: unknown setting{_accepted_keys(model, place)}")
        else:
            given = "" if problem["type"] == "missing" else f" (given: {problem['input']!r})"
            message = problem["msg"].removeprefix("Value error, ")
            name = (
                ".".join(p for p in place if p in _all_keys(model) or not _is_union_tag(p))
                or "config"
            )
            line = f"  {name}: {message}{given if isinstance(problem['input'], str | int | float) else ''}"
            if line not in lines:
                lines.append(line)
    return "\n".join(lines)


def _is_union_tag(part: str) -> bool:
    """Whether pydantic added this part to the location: the union member it tried ("int", "literal['all']")."""
    return part in ("int", "float", "str") or part.startswith(
        ("literal[", "function-", "constrained", "tuple[")
    )


def _accepted_keys(model: type[BaseModel], place: tuple[str, ...]) -> str:
    table: Any = model
    for part in place[:-1]:
        field = table.model_fields.get(part) if hasattr(table, "model_fields") else None
        table = field.annotation if field else None
    if not hasattr(table, "model_fields"):
        return ""
    names = list(table.model_fields)
    close = difflib.get_close_matches(place[-1], names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"{hint} Accepted: {', '.join(names)}" if hint else f". Accepted: {', '.join(names)}"


def _all_keys(model: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        keys.add(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys |= _all_keys(field.annotation)
    return keys
