"""Generator URIs: `scheme:target?option=value&...`, each option named, typed and checked by its adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, get_args

from ptgm_fast.errors import UserError
from ptgm_fast.generators.card import AdapterCard, Soft
from ptgm_fast.generators.files import validated
from ptgm_fast.query import split_query

Default = TypeVar("Default")


@dataclass
class Request:
    """A parsed URI. Options shared by all adapters are already taken; an adapter takes its own, then calls `done`."""

    text: str
    scheme: str
    target: str
    options: dict[str, str]
    sha256: str | None = None
    soft: Soft | None = None
    soft_seed: int = 0
    licences: tuple[str, ...] = ()
    on_notice: Callable[[str], None] = lambda message: None
    _known: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """The prefix of error messages."""
        return f"generator {self.text!r}"

    def take(self, name: str, default: str = "") -> str:
        self._known.append(name)
        return self.options.get(name, default)

    def whole(self, name: str, default: Default) -> int | Default:
        text = self.take(name)
        try:
            return int(text) if text else default
        except ValueError as error:
            raise UserError(f"{self.what}: {name} must be a whole number, got {text!r}") from error

    def number(self, name: str, default: float) -> float:
        text = self.take(name)
        try:
            return float(text) if text else default
        except ValueError as error:
            raise UserError(f"{self.what}: {name} must be a number, got {text!r}") from error

    def choice(self, name: str, accepted: Iterable[str], default: str) -> str:
        value, accepted = self.take(name, default), tuple(accepted)
        if value and value not in accepted:
            raise UserError(
                f"{self.what}: {name} = {value!r} is unknown; accepted: {', '.join(accepted)}"
            )
        return value

    def done(self) -> None:
        """Raise UserError if an option was never taken."""
        if unknown := sorted(self.options.keys() - set(self._known)):
            raise UserError(
                f"{self.what}: unknown option {', '.join(unknown)}; accepted: {', '.join(sorted(set(self._known)))}"
            )

    def card(self, **fields: Any) -> AdapterCard:
        """The requested generator's card. Classes without names are numbered. Raises UserError for invalid fields."""
        numbered = tuple(map(str, range(fields["num_classes"])))
        shared = {"class_names": numbered, "channels": 3, "licences": self.licences}
        return validated(AdapterCard, shared | fields, where=self.what)


def parse(
    text: str,
    *,
    soft: Soft | None,
    soft_seed: int,
    sha256: str | None,
    on_notice: Callable[[str], None],
) -> Request:
    """Parse a URI and the options that all adapters share, also accepted as arguments. Raises UserError if malformed."""
    place, _, query = text.partition("?")
    scheme, _, target = place.partition(":")
    try:
        pairs = split_query(query)
    except ValueError as error:
        raise UserError(
            f"generator {text!r}: options are written ?name=value&name=value ({error})"
        ) from error
    options = dict(pairs)
    if len(options) != len(pairs) or "" in options.values():
        raise UserError(f"generator {text!r}: an option is given twice, or without a value")
    if not target:
        raise UserError(f"generator {text!r}: nothing follows {scheme + ':'!r}")
    request = Request(text, scheme, target, options, on_notice=on_notice)
    request.soft = cast("Soft | None", request.choice("soft", get_args(Soft), soft or "") or None)
    request.soft_seed = request.whole("soft_seed", soft_seed)
    request.sha256 = sha256 or request.take("sha256") or None
    licence = request.take("licence")
    request.licences = (licence,) if licence else ()
    if not 0 <= request.soft_seed < 2**64:
        raise UserError(
            f"{request.what}: soft_seed must lie in [0, 2**64), got {request.soft_seed}"
        )
    return request
