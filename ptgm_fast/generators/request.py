"""What a caller asks of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ptgm_fast.generators.card import Soft
from ptgm_fast.generators.uri import URI


@dataclass(frozen=True)
class Request:
    """A parsed URI with the options that all adapters share already taken."""

    uri: URI
    sha256: str | None = None
    soft: Soft | None = None
    soft_seed: int = 0
    licences: tuple[str, ...] = ()
