"""Comparison of two runs of the throughput suites: what became slower by more than both runs' noise?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from result_file import Benchmarks, CaseResult, Contender

from ptgm_fast.errors import UserError

# A smaller change does not count, however low the noise.
LEAST = 0.03
# One-sided critical values of Student's t at 1 in 1,000, by degrees of freedom (rounded down to the next entry).
CRITICAL = {1: 318.309, 2: 22.327, 3: 10.215, 4: 7.173, 5: 5.893, 6: 5.208, 7: 4.785, 8: 4.501, 9: 4.297, 10: 4.144,
            12: 3.930, 15: 3.733, 20: 3.552, 30: 3.385, 60: 3.232, 120: 3.160}  # fmt: skip

Verdict = Literal["slower", "faster", "same", "noise unknown"]


@dataclass(frozen=True)
class Change:
    """One contender of ours in one case. Times are geometric means over rounds, in seconds; ratios are new / old."""

    case: str
    contender: str
    old: float
    new: float
    against_peers: float | None
    """The change of the ratio to the case's peers; None if times were compared instead."""
    bound: float | None
    """The factor beyond which a change counts; None with one round, where noise is unknown."""
    verdict: Verdict

    @property
    def ratio(self) -> float:
        return self.new / self.old


@dataclass(frozen=True)
class Comparison:
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.verdict == "slower")


def compare(old: Benchmarks, new: Benchmarks) -> Comparison:
    """Each contender of ours that both runs have, new against old.

    The compared quantity is log(own / geometric mean of the peers), round by round: drift of the machine affects both and
    cancels. It is log(own) in a case without peers, and if the same machine has other package versions, whose
    change would be taken for ours (a package that one run lacks has no peers in common, and changes nothing). With
    means m, standard deviations s and numbers of rounds n of the two runs, a change counts when

        |m_new - m_old| > max(log 1.03, t * sqrt(s_old^2 / n_old + s_new^2 / n_new)),

    where t is Student's t for a one-sided 1 in 1,000, with the degrees of freedom of Welch (1947), rounded down. So of 1,000
    contenders that did not change, about one at most is called slower, if rounds vary independently and log-normally.
    With one round in either run the noise is unknown, and nothing counts. Raises UserError when the runs are on
    different kinds of devices or have no case in common.
    """
    if old.device != new.device:
        raise UserError(
            f"the first file was measured on {old.device}, the second on {new.device}: compare files from the same kind of device"
        )
    before, after = ({case.name: case for case in run.cases} for run in (old, new))
    # On another machine, only the ratios to the peers can be compared.
    by_peers = not _changed(old, new) or old.machine != new.machine
    changes = [
        _change(before[name], after[name], own, by_peers)
        for name in before
        if name in after
        for own in before[name].of_role("own")
        if own.name in {contender.name for contender in after[name].of_role("own")}
    ]
    if not changes:
        raise UserError(
            "the two files have no case of ours in common: they come from different suites. "
            f"The first has {_few(before)}; the second {_few(after)}"
        )
    return Comparison(tuple(changes), tuple(_notes(old, new, changes)))


def _changed(old: Benchmarks, new: Benchmarks) -> list[str]:
    """The packages that both runs had, in different versions."""
    both = old.versions.keys() & new.versions.keys()
    return sorted(name for name in both if old.versions[name] != new.versions[name])


def _change(old: CaseResult, new: CaseResult, own: Contender, by_peers: bool) -> Change:
    names = [own.name]
    if by_peers:
        common = {peer.name for peer in new.of_role("peer")}
        names += [peer.name for peer in old.of_role("peer") if peer.name in common]
    raw = [_logs(case, names[:1]) for case in (old, new)]
    compared = [_logs(case, names) for case in (old, new)]
    shift = statistics.fmean(compared[1]) - statistics.fmean(compared[0])
    bound = _bound(*compared)
    verdict: Verdict = "noise unknown"
    if bound is not None:
        verdict = "same" if abs(shift) <= bound else "slower" if shift > 0 else "faster"
    return Change(
        case=old.name,
        contender=own.name,
        old=math.exp(statistics.fmean(raw[0])),
        new=math.exp(statistics.fmean(raw[1])),
        against_peers=math.exp(shift) if len(names) > 1 else None,
        # A file of two wildly different rounds gives a bound that no change exceeds.
        bound=None if bound is None else math.exp(min(bound, 700.0)),
        verdict=verdict,
    )


def _logs(case: CaseResult, names: Sequence[str]) -> list[float]:
    """By round, the log of the first contender's time over the geometric mean of the others'."""
    own, *peers = (next(c.seconds for c in case.contenders if c.name == name) for name in names)
    return [
        math.log(seconds) - (statistics.fmean(math.log(p[i]) for p in peers) if peers else 0.0)
        for i, seconds in enumerate(own)
    ]


def _bound(old: Sequence[float], new: Sequence[float]) -> float | None:
    """The difference of means beyond which a change counts; None if either side has a single round."""
    if min(len(old), len(new)) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (old, new)]
    squared = sum(parts)
    if squared == 0:
        return math.log1p(LEAST)
    freedom = squared**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (old, new), strict=True)
    )
    # An integer may come out slightly below itself by rounding.
    critical = CRITICAL[max(known for known in CRITICAL if known <= max(1.0, freedom + 1e-6))]
    return max(math.log1p(LEAST), critical * math.sqrt(squared))


def _notes(old: Benchmarks, new: Benchmarks, changes: Sequence[Change]) -> list[str]:
    notes = []
    if old.machine != new.machine:
        notes.append(
            f"another machine: {old.machine.title}, then {new.machine.title}. The ratios to the peers are what can be "
            "compared; a peer may gain more from another machine than ours does"
        )
    if changed := _changed(old, new):
        pairs = ", ".join(
            f"{name} {old.versions[name]} -> {new.versions[name]}" for name in changed
        )
        then = "" if old.machine != new.machine else ", so times are compared as they are"
        notes.append(f"other versions ({pairs}): peers may have changed too{then}")
    for which, run, other in (("first", old, new), ("second", new, old)):
        if alone := sorted(run.versions.keys() - other.versions.keys()):
            notes.append(f"only in the {which} run: {', '.join(alone)}")
    for which, run, other in (("first", old, new), ("second", new, old)):
        others = {case.name for case in other.cases}
        if only := [case.name for case in run.cases if case.name not in others]:
            notes.append(f"{len(only)} only in the {which} file: {_few(only)}")
    unknown = sum(change.verdict == "noise unknown" for change in changes)
    if unknown:
        notes.append(
            f"{unknown} of {len(changes)} were measured in one round in either file: their noise is unknown and nothing is flagged"
        )
    return notes


def _few(names: Collection[str], most: int = 5) -> str:
    shown = "; ".join(list(names)[:most])
    return shown + (f"; and {len(names) - most} more" if len(names) > most else "")
