"""What one method adds to another, paired by seed, at what cost in time; and a verdict on whether the pseudo data helped."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ptgm_fast.records import Part


class Gain(Part):
    """Mean difference of test accuracies in points, and its standard error over seeds (None for one seed)."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + ("" if self.error is None else f" ± {self.error:.1f}")

    @property
    def is_clear(self) -> bool:
        """Whether it differs from 0 by more than two standard errors; always False for one seed."""
        return self.error is not None and abs(self.mean) > 2 * self.error


def gain(methods: Mapping[str, Mapping[str, Any]], with_it: str, without: str) -> Gain:
    """The gain of row `with_it` of compare.json over row `without`, paired by seed."""
    accuracies = (methods[name]["test_accuracy"] for name in (with_it, without))
    points = [100 * (a - b) for a, b in zip(*accuracies, strict=True)]
    several = len(points) > 1
    error = statistics.stdev(points) / len(points) ** 0.5 if several else None
    return Gain(mean=statistics.fmean(points), error=error)


def price(points: float, seconds: float, *, clear: bool = True) -> str:
    """The seconds that a gain took, as text to append to it; with points a minute if it is one, and clear."""
    if seconds <= 0:
        return f" in {-seconds:.1f} s less" if seconds else " in the same time"
    rate = f", {60 * points / seconds:+.1f} points a minute" if clear and points > 0 else ""
    return f" for {seconds:.1f} s more{rate}"


def verdict(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """One line: what each stage's pseudo data added in points of test accuracy, paired by seed, and how long it took."""
    parts = []
    for stage, with_it, without in (
        ("PP", "pp", "scratch"),
        ("P-SSL", "p-ssl", "scratch"),
        ("P-SSL after PP", "pp+p-ssl", "pp"),
        ("P-SSL after PP, beyond distillation,", "pp+p-ssl", "pp+soft-target"),
    ):
        if with_it in methods and without in methods:
            found = gain(methods, with_it, without)
            took = methods[with_it]["seconds"] - methods[without]["seconds"]
            cost = price(found.mean, took, clear=found.is_clear or found.error is None)
            parts.append(
                f"{stage} {judged(found)} {found.mean:+.1f} points ({with_it} against {without}){cost}"
            )
    if not parts:
        return "Did the pseudo data help? Add scratch and pp or p-ssl to --methods to find out."
    return "Did the pseudo data help? " + "; ".join(parts) + "."


def verdicts(methods: Mapping[str, Mapping[str, Any]], networks: Sequence[str]) -> str:
    """`verdict`; with several networks, one line for each."""
    if len(networks) == 1:
        return verdict(methods)
    lines = []
    for network in networks:
        end = f" @ {network}"
        own = {key.removesuffix(end): row for key, row in methods.items() if key.endswith(end)}
        lines.append(f"{network}: {verdict(own)}")
    return "\n".join(lines)


def judged(found: Gain) -> str:
    """ "helped" or "hurt" for a clear gain; otherwise words that leave it open."""
    if found.error is None:
        return "on one seed:"
    if not found.is_clear:
        return "made no clear difference:"
    return "helped:" if found.mean > 0 else "hurt:"
