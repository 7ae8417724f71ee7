"""Generator URIs: `scheme:target?option=value&...`, each option named, typed and checked by its adapter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from ptgm_fast.errors import UserError


@dataclass
class URI:
    """A parsed generator URI; adapters take their options out of it, then call `done`."""

    text: str
    scheme: str
    target: str
    options: dict[str, str]
    _known: list[str] = field(default_factory=list)

    def take(self, name: str, default: str = "") -> str:
        self._known.append(name)
        return self.options.get(name, default)

    def number(self, name: str, default: float | None, kind: type = int) -> float | None:
        text = self.take(name)
        if not text:
            return default
        try:
            return kind(text)
        except ValueError as error:
            word = "a whole number" if kind is int else "a number"
            raise UserError(
                f"generator {self.text!r}: {name} must be {word}, got {text!r}"
            ) from error

    def choice(self, name: str, accepted: Iterable[str], default: str) -> str:
        value, accepted = self.take(name, default), tuple(accepted)
        if value and value not in accepted:
            raise UserError(
                f"generator {self.text!r}: {name} = {value!r} is unknown; accepted: {', '.join(accepted)}"
            )
        return value

    def done(self) -> None:
        """Raise UserError for an option that no one took."""
        if unknown := sorted(self.options.keys() - set(self._known)):
            raise UserError(
                f"generator {self.text!r}: unknown option {', '.join(unknown)}; accepted: {', '.join(sorted(set(self._known)))}"
            )


def parse_uri(text: str) -> URI:
    """Split a URI. Raises UserError for an option without a value or given twice."""
    place, _, query = text.partition("?")
    scheme, _, target = place.partition(":")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UserError(
            f"generator {text!r}: options are written ?name=value&name=value ({error})"
        ) from error
    options = dict(pairs)
    if len(options) != len(pairs) or "" in options.values():
        raise UserError(f"generator {text!r}: an option is given twice, or without a value")
    if not target:
        raise UserError(f"generator {text!r}: nothing follows {scheme + ':'!r}")
    return URI(text, scheme, target, options)
