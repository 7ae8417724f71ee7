"""Write docs/options.md from the typed config: every setting with its range, default and description.

Run it after changing an option: python scripts/write_options.py. A test checks that the page is up to date.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from ptgm_fast.config import RunConfig
from ptgm_fast.kernels import ViewSpec
from ptgm_fast.training.options import Part, Phase
from ptgm_fast.training.source import SourceOptions

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
HEADER = """# Settings

Written by `python scripts/write_options.py`. In a TOML file they are tables (`[p_ssl]`); on the command line write `--set p_ssl.weight=0.3`.
Views (`views`, `weak_views`, `strong_views`) take a preset's name or a table of ranges, for example
`{ rotate = 10.0, translate = 0.05, scale = [0.9, 1.1] }`; see the docstring of `ptgm_fast.kernels.ViewSpec`.
"""


def rows(model: type[BaseModel], prefix: str = "", defaults: BaseModel | None = None) -> list[str]:
    """One table row per setting, nested tables after the plain settings; defaults: the default of the field that holds `model`."""
    plain, nested = [], []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested += rows(field.annotation, f"{prefix}{name}.", field.default)
            continue
        accepted = describe(field.annotation)
        accepted += limits(field.metadata)
        own = defaults is not None and name in defaults.model_fields_set
        value = getattr(defaults, name) if own else field.default
        default = "required" if field.is_required() and not own else show(value)
        plain.append(f"| `{prefix}{name}` | {accepted} | {default} | {field.description or ''} |")
    return plain + nested


def limits(metadata: list[Any]) -> str:
    return "".join(
        f", {sign} {getattr(m, limit)}"
        for limit, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        for m in metadata
        if getattr(m, limit, None) is not None
    )


def describe(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is Annotated and annotation != Part:
        inner, *told = get_args(annotation)
        return describe(inner) + limits([m for t in told for m in getattr(t, "metadata", [])])
    if origin in (typing.Union, types.UnionType):
        one, *others = get_args(annotation)
        if others == [tuple[one, ...]]:
            return f"{describe(one)}; or a list of them"
        return " or ".join(describe(part) for part in get_args(annotation))
    if annotation == Part:
        return "`1/N`"
    if annotation == Phase:
        return "`[part, share]`"
    if origin is Annotated:
        return describe(get_args(annotation)[0])
    if origin is tuple:
        return f"list of {describe(get_args(annotation)[0])}"
    if annotation is ViewSpec:
        return "view"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(
        annotation, str(annotation)
    )


def show(value: Any) -> str:
    if isinstance(value, tuple):
        return f"`[{', '.join(str(v) for v in value)}]`"
    return f"`{value}`" if value != "" else "empty"


def page() -> str:
    head = "| setting | accepted | default | what it does |\n|---|---|---|---|\n"
    parts = [HEADER]
    for title, model in (
        ("ptgm-fast train, compare, synthesize", RunConfig),
        ("ptgm-fast source", SourceOptions),
    ):
        parts.append(f"\n## {title}\n\n{head}" + "\n".join(rows(model)) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
