"""Errors that a user can cause. Each message says what was given, what is accepted and how to fix it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """Invalid user input; the command line prints the message without a traceback and exits with code 2."""


def first_problem(error: ValidationError, whole: str) -> str:
    """The first field that failed validation, and why; `whole` replaces the field in errors about the whole model."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


class MissingExtraError(UserError):
    """An optional package is missing; the message names the package and the extra that installs it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed.\n"
            f"Install it with: pip install 'ptgm-fast[{extra}]'"
        )
