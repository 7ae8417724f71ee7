"""The errors a user can cause: each names what was given, what is accepted and the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """A mistake in what the user gave; the command line prints it without a traceback and exits with 2."""


def first_problem(error: ValidationError, whole: str) -> str:
    """The first field that a model refused, and why; `whole` stands for the place where it is no field's fault."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"


class MissingExtraError(UserError):
    """An optional package is needed: names the package and the extra that brings it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package!r}, which is not installed.\n"
            f"Install it with: pip install 'ptgm-fast[{extra}]'"
        )
