"""URI options, `name=value&name=value`. Values are taken literally, so any path can be written as it is."""

from __future__ import annotations

import re

_BETWEEN = re.compile(r"&(?=[A-Za-z_]\w*=)")


def split_query(text: str) -> list[tuple[str, str]]:
    """Split options into (name, value) pairs, in order.

    Nothing is decoded: `+`, `%`, `=`, `?`, and any `&` not followed by NAME=, are part of the value.
    Raises ValueError for a part that is not name=value.
    """
    pairs = [part.partition("=") for part in _BETWEEN.split(text)] if text else []
    if bad := [name for name, equals, _ in pairs if not (name and equals)]:
        raise ValueError(f"{bad[0]!r} is not name=value")
    return [(name, value) for name, _, value in pairs]
