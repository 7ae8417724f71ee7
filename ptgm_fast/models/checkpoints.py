"""Finding one network's weights in what training scripts save: wrapped in dicts, under prefixes, beside others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ptgm_fast.errors import UserError

# What module wrappers (data parallel, torch.compile) add to names, at any depth.
_WRAPPERS = {"module", "_orig_mod"}


def split_choice(path: Path | str) -> tuple[Path, str]:
    """Split FILE#NAME into the file and the name within it; if a file of the whole name exists, the name is empty."""
    file, sharp, choice = str(path).rpartition("#")
    if not sharp or Path(path).is_file():
        return Path(path), ""
    return Path(file), choice


def flat_names(loaded: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, with names joined by dots; other values, and keys that are not strings, are skipped."""
    for key, value in loaded.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from flat_names(value, f"{prefix}{key}.")


def only_state(loaded: Mapping[Any, Any], choice: str, *, where: str) -> dict[str, Tensor]:
    """The one state dict in a file, or the one named `choice`: the file itself, or a dict in it that holds only tensors.

    For readers without a module to compare with; otherwise, see `fitting`. Raises UserError if there is none, or
    several.
    """
    found = {place: state for place, state in _states(loaded) if choice in ("", place)}
    if len(found) == 1:
        return next(iter(found.values()))
    if choice and not found:
        found = dict(_states(loaded))
    if found:
        raise UserError(_to_choose(where, list(found), choice))
    raise UserError(f"{where} does not hold a state dict (names to tensors)")


def _states(loaded: Mapping[Any, Any], place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    names = all(isinstance(key, str) for key in loaded)
    if loaded and names and all(isinstance(value, Tensor) for value in loaded.values()):
        yield place, dict(loaded)
    elif names:
        for key, value in loaded.items():
            if isinstance(value, Mapping):
                yield from _states(value, f"{place}.{key}" if place else key)


def fitting(
    loaded: Mapping[Any, Any], own: Mapping[str, Tensor], choice: str, *, where: str
) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file that belong to a module, under the module's own names, and where in the file they were ("" for
    the file as it is).

    own: the module's state dict. Prefixes come from wrappers (`module.`, `_orig_mod.`), from the dicts that a state dict
    is in (`state_dict`, `model_ema`) and from the module that holds it (Lightning's `model.`). Under a prefix that fits
    are exactly the module's names, with its shapes. choice: the beginning of the prefix. If no prefix fits, returns the
    tensors under the nearest one, so that `check_fit` can say why. Raises UserError, listing them, if several fit.
    """
    flat = dict(flat_names(loaded))
    if not flat:
        raise UserError(f"{where} does not hold a state dict (names to tensors)")
    if choice and not any(name.startswith(f"{choice}.") for name in flat):
        raise UserError(_to_choose(where, _fitting(flat, own) or _tops(flat), choice))
    chosen = {k: v for k, v in flat.items() if not choice or k.startswith(f"{choice}.")}
    for names in (chosen, _unwrapped(chosen)):
        if len(found := _fitting(names, own)) > 1:
            raise UserError(_to_choose(where, found))
        if found or names.keys() == own.keys():
            prefix = found[0] if found else ""
            return _under(names, prefix), _place(prefix, unwrapped=names is not chosen)
    nearest = _prefixes(chosen, own).most_common(1)
    prefix = nearest[0][0] if nearest else choice
    return _under(chosen, prefix), _place(prefix)


def _prefixes(flat: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Counter[str]:
    """For each prefix, how many of the module's names it precedes."""
    counts: Counter[str] = Counter()
    for name in flat:
        parts = name.split(".")
        counts.update(".".join(parts[:i]) for i in range(len(parts)) if ".".join(parts[i:]) in own)
    return counts


def _fitting(flat: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    shapes = {name: tensor.shape for name, tensor in own.items()}
    complete = [p for p, count in _prefixes(flat, own).items() if count == len(own)]
    return [p for p in complete if {k: v.shape for k, v in _under(flat, p).items()} == shapes]


def _under(flat: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}." if prefix else ""
    return {name[len(start) :]: t for name, t in flat.items() if name.startswith(start)}


def _unwrapped(flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the wrappers' parts removed from their names; unchanged if two names would collide."""
    names = {name: ".".join(p for p in name.split(".") if p not in _WRAPPERS) for name in flat}
    return (
        dict(flat) if len(set(names.values())) < len(names) else {names[n]: flat[n] for n in flat}
    )


def _place(prefix: str, unwrapped: bool = False) -> str:
    under = f"under {prefix!r}" if prefix else ""
    without = f"without {' and '.join(map(repr, sorted(_WRAPPERS)))} in its names"
    return " ".join(filter(None, [under, without if unwrapped else ""]))


def _tops(flat: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in flat))


def _to_choose(where: str, found: list[str], choice: str = "") -> str:
    listed = ", ".join(repr(name) for name in found[:12])
    absent = f"has no {choice!r}" if choice else "holds several that fit"
    return f"{where} {absent}: {listed}. Choose one with #NAME after the file's name, for example FILE#{found[0]}"
