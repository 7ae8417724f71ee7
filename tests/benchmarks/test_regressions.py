"""`compare.py`: planted regressions are found, noise and the machine's drift are not, bad files are refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import compare as command_line
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from regressions import CRITICAL, LEAST, compare
from result_file import Benchmarks, CaseResult, read_benchmarks, write_benchmarks
from scipy import stats

from ptgm_fast.errors import UserError

MACHINE = {"processor": "A processor", "cores": 2}
VERSIONS = {"torch": "2.14.1"}


def case(name: str = "case", **contenders: Sequence[float]) -> dict[str, Any]:
    """`own`, `peer`, `floor`, or `own_2`, ...: the seconds of its rounds."""
    return {
        "name": name,
        "suite": "kernels",
        "threads": 1,
        "contenders": [
            {
                "name": key,
                "role": key.split("_")[0],
                "seconds": tuple(seconds),
                "quartiles": (min(seconds), max(seconds)),
                "calls": len(seconds),
            }
            for key, seconds in contenders.items()
        ],
    }


def run(*cases: dict[str, Any], **changed: Any) -> Benchmarks:
    values = {"date": "2026-01-31", "device": "cpu", "machine": MACHINE, "versions": VERSIONS}
    return Benchmarks.model_validate({**values, "cases": cases, **changed})


def noisy(
    rng: np.random.Generator, noise: float, rounds: int, factor: float = 1.0, num: int = 1
) -> list[dict[str, Any]]:
    """Cases with one contender of ours and two peers, whose rounds vary independently; ours is `factor` as slow."""
    times = np.exp(noise * rng.standard_normal((num, 3, rounds)))
    return [
        case(f"case {i}", own=1e-3 * factor * own, peer=2e-3 * peer, peer_2=5e-3 * other)
        for i, (own, peer, other) in enumerate(times)
    ]


@pytest.mark.parametrize(("noise", "rounds"), [(0.01, 3), (0.01, 5), (0.03, 4), (0.2, 3), (0.2, 8)])
def test_at_most_one_in_a_thousand_unchanged_cases_is_called_slower(
    noise: float, rounds: int
) -> None:
    rng, num = np.random.default_rng(0), 3000
    old, new = (run(*noisy(rng, noise, rounds, num=num)) for _ in range(2))
    found = compare(old, new)
    assert len(found.changes) == num
    # Three standard errors of a count above it.
    assert len(found.regressions) <= num / 1000 + 3 * math.sqrt(num / 1000)


def test_a_planted_regression_of_a_tenth_is_found_in_noise_of_a_hundredth() -> None:
    rng, num = np.random.default_rng(1), 200
    old = run(*noisy(rng, 0.01, 5, num=num))
    slower, same = noisy(rng, 0.01, 5, factor=1.1, num=num), noisy(rng, 0.01, 5, num=num)
    new = run(*(slower[i] if i % 10 == 3 else same[i] for i in range(num)))
    found = {change.case for change in compare(old, new).regressions}
    assert found == {f"case {i}" for i in range(3, num, 10)}
    # The other way round they became faster, and nothing is flagged.
    back = compare(new, old)
    assert not back.regressions
    assert {change.case for change in back.changes if change.verdict == "faster"} == found


def test_the_peers_take_the_machines_drift_out() -> None:
    rng = np.random.default_rng(2)
    old = run(*noisy(rng, 0.01, 5, num=2))

    def drifted(own: float, machine: float) -> Benchmarks:
        cases = noisy(rng, 0.01, 5, num=2)
        for made in cases:
            for contender in made["contenders"]:
                factor = machine * (own if contender["role"] == "own" else 1.0)
                contender["seconds"] = tuple(factor * s for s in contender["seconds"])
        return run(*cases)

    slower_machine = compare(old, drifted(1.0, 1.4))
    assert not slower_machine.regressions
    assert all(change.ratio > 1.3 for change in slower_machine.changes)
    assert all(0.95 < (change.against_peers or 0) < 1.05 for change in slower_machine.changes)
    hidden = compare(old, drifted(1.15, 1 / 1.15))
    assert all(0.95 < change.ratio < 1.05 for change in hidden.changes)
    assert len(hidden.regressions) == 2


def test_other_versions_and_machines_are_said() -> None:
    quiet = (1.0, 1.001, 0.999)
    twice = tuple(2 * s for s in quiet)
    old, new = run(case(own=quiet, peer=twice)), case(own=quiet, peer=quiet)
    # The peer became twice as fast: with a new torch that is its merit, not our regression.
    newer = compare(old, run(new, versions={"torch": "2.15.0"}))
    assert (newer.changes[0].verdict, newer.changes[0].against_peers) == ("same", None)
    assert "torch 2.14.1 -> 2.15.0" in newer.notes[0]
    # A package that only one of them had leaves the common peers what they are.
    with_more = compare(old, run(new, versions={**VERSIONS, "semilearn": "0.3.2"}))
    assert with_more.changes[0].verdict == "slower"
    assert with_more.changes[0].against_peers == pytest.approx(2, rel=0.01)
    assert with_more.notes == ("only in the second run: semilearn",)
    elsewhere = compare(old, run(new, machine={"processor": "Another", "cores": 64}))
    assert elsewhere.changes[0].verdict == "slower"
    assert "2 cores of A processor, then 64 cores of Another" in elsewhere.notes[0]


def test_cases_of_one_file_are_named_and_files_without_a_common_one_refused() -> None:
    quiet = (1.0, 1.001, 0.999)
    a, b, c = (case(name, own=quiet) for name in "abc")
    found = compare(run(a, b), run(b, c))
    assert [change.case for change in found.changes] == ["b"]
    assert found.changes[0].against_peers is None
    assert found.notes == ("1 only in the first file: a", "1 only in the second file: c")
    with pytest.raises(UserError, match="no case of ours in common"):
        compare(run(a), run(c))
    with pytest.raises(UserError, match="on cpu, the second on cuda"):
        compare(run(a), run(a, device="cuda"))


def test_one_round_flags_nothing_and_says_so() -> None:
    found = compare(run(case(own=[1.0])), run(case(own=[3.0])))
    assert (found.changes[0].verdict, found.changes[0].bound) == ("noise unknown", None)
    assert "noise is unknown" in found.notes[0]


seconds = st.floats(1e-7, 1e3)
rounds_of_two = st.integers(2, 6).flatmap(
    lambda n: st.tuples(*[st.lists(seconds, min_size=n, max_size=n)] * 2)
)


# Four degrees of freedom that come out a rounding below four.
@example(([1.0] * 3, [1.0, 1.0, 118.0]), ([1.0] * 3, [1.0, 1.0, 118.0]), 1.5)
@given(rounds_of_two, rounds_of_two, st.floats(1e-3, 1e3))
def test_properties(old: Any, new: Any, factor: float) -> None:
    a, b = (run(case(own=own, peer=peer)) for own, peer in (old, new))
    (there,), (back,) = compare(a, b).changes, compare(b, a).changes
    opposite = {"slower": "faster", "faster": "slower", "same": "same"}
    assert back.verdict == opposite[there.verdict]
    assert compare(a, a).changes[0].verdict == "same"
    assert there.ratio == pytest.approx(stats.gmean(new[0]) / stats.gmean(old[0]))
    # A machine that is `factor` as slow for everybody changes no verdict.
    scaled = run(case(own=[factor * s for s in new[0]], peer=[factor * s for s in new[1]]))
    (change,) = compare(a, scaled).changes
    assert change.against_peers == pytest.approx(there.against_peers)
    assert change.bound == pytest.approx(there.bound)


@given(rounds_of_two, rounds_of_two)
def test_what_is_flagged_is_significant_to_scipy(old: Any, new: Any) -> None:
    (change,) = compare(*(run(case(own=own, peer=peer)) for own, peer in (old, new))).changes
    logs = [np.log(own) - np.log(peer) for own, peer in (old, new)]
    shift = logs[1].mean() - logs[0].mean()
    assert change.against_peers == pytest.approx(math.exp(shift))
    if change.verdict == "slower" and min(x.std() for x in logs) > 1e-6:
        welch = stats.ttest_ind(logs[1], logs[0], equal_var=False, alternative="greater")
        assert welch.pvalue <= 0.00101
        assert shift > math.log1p(LEAST)


def test_critical_values_are_students() -> None:
    for freedom, value in CRITICAL.items():
        assert value == pytest.approx(stats.t.isf(0.001, freedom), abs=6e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "No such file.*make bench"),
        (lambda text: "", "not valid JSON.*make bench"),
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[" * 100_000, "not valid JSON"),
        (lambda text: '{"date": "2026-01-31"}', "not a ptgm-fast file of benchmarks"),
        (lambda text: text.replace('"version": 1', '"version": 7'), "version 7.*reads version 1"),
        (lambda text: text.replace('"seconds": [0.5', '"seconds": [-0.5'), "seconds.*greater than 0"),
        (lambda text: text.replace('"seconds": [0.5', '"seconds": [NaN'), "seconds"),
        (lambda text: text.replace('"seconds": [0.5, 1.0]', '"seconds": [0.5]'), "different numbers of rounds"),
        (lambda text: text.replace('"peer"', '"own"'), "twice"),
        (lambda text: json.dumps({**json.loads(text), "cases": []}), "cases.*at least 1"),
        (lambda text: json.dumps({**json.loads(text), "cases": json.loads(text)["cases"] * 2}), "duplicate cases: case"),
        (lambda text: text.replace('"role"', '"part"'), "role"),
    ],
    ids=["none", "empty", "half", "deep", "another file", "another version", "negative", "NaN", "rounds", "name twice", "no case",
         "case twice", "unknown key"],
)  # fmt: skip
def test_bad_files_are_refused_with_the_fix(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "results.json"
    if damage:
        write_benchmarks(path, run(case(own=[0.5, 1.0], peer=[1.0, 2.0])))
        good = path.read_text()
        assert damage(good) != good
        path.write_text(damage(good))
    with pytest.raises(UserError, match=f"(?s){message}") as raised:
        read_benchmarks(path)
    assert str(path) in str(raised.value)


def test_best_peer_is_no_floor() -> None:
    made = CaseResult.model_validate(case(own=[1.0], floor=[0.1], peer=[3.0], peer_2=[2.0]))
    assert made.best_peer is not None
    assert made.best_peer.name == "peer_2"
    assert CaseResult.model_validate(case(own=[1.0], floor=[0.1])).best_peer is None


def test_the_page_about_it_names_every_field() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text()
    schema = Benchmarks.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for field in part["properties"]:
            assert f"`{field}" in page or f"`cases[].{field}" in page, field


@given(st.lists(rounds_of_two, min_size=1, max_size=4))
def test_a_file_is_what_was_written_a_line_each_contender(
    tmp_path_factory: pytest.TempPathFactory, cases: Any
) -> None:
    path = tmp_path_factory.mktemp("results") / "results.json"
    named = {"facts": {"steps/s": 12.5, "note": 'a "quote"\nand a line'}}
    made = [case(f"case {i}", own=own, peer=peer) for i, (own, peer) in enumerate(cases)]
    made[0]["contenders"][1].update(named)
    results = run(*made)
    write_benchmarks(path, results)
    assert read_benchmarks(path) == results
    assert len(path.read_text().splitlines()) == 2 + 3 * len(made)


def test_the_command_prints_the_changes_and_ends_with_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = (1e-3, 1.01e-3, 9.9e-4)
    paths = [tmp_path / name for name in ("old.json", "new.json")]
    for path, factor in zip(paths, (1.0, 1.5), strict=True):
        own = [factor * s for s in quiet]
        write_benchmarks(path, run(case(own=own, peer=[2 * s for s in quiet])))

    def command(old: Path, new: Path) -> tuple[int, str, str]:
        return command_line.main([str(old), str(new)]), *capsys.readouterr()

    code, out, err = command(*paths)
    assert (code, err) == (1, "")
    assert "slower" in out
    assert "1.500" in out
    assert "1 of 1 slower beyond the noise" in out
    code, out, err = command(paths[0], paths[0])
    assert (code, err) == (0, "")
    assert "none of 1 slower" in out
    # As a user calls it, away from the checkout.
    code = subprocess.run(
        [sys.executable, command_line.__file__, *paths], cwd=tmp_path, capture_output=True
    ).returncode
    assert code == 1
    paths[0].write_text(paths[0].read_text()[:100])
    code, out, err = command(*paths)
    assert (code, out) == (2, "")
    assert "not valid JSON" in err
