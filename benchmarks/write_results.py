"""Save the throughput suites' results in one file, and write the tables and plots from that file alone.

pytest benchmarks --benchmark-enable --benchmark-only --rounds 5 --benchmark-json=raw.json
python benchmarks/write_results.py raw.json        # -> benchmarks/results/DATE-MACHINE.json -> tables and plots
python benchmarks/write_results.py                 # tables and plots again, from the newest results of each instruction set
python benchmarks/write_results.py --recipes raw.json  # whole trainings only: a separate file, in results/whole-trainings

The accuracy tables of README.md and docs/results.md come from docs/results/compare-letters-digits.json: copy the compare.json
of a new comparison there.

Several raw files from one machine (`raw.json more.json`) become one result file: suites, and the rounds of a suite (--round),
may run in separate processes.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import accuracy_tables
import result_plots
import result_tables
from instruction_set import ORDER
from result_file import Benchmarks, Machine, read_benchmarks, write_benchmarks

from ptgm_fast.errors import UserError
from ptgm_fast.records import read_json

ROOT = Path(__file__).resolve().parent.parent
# The folder for results of whole trainings that were measured separately.
WHOLE_TRAININGS = "whole-trainings"
# Values that have their own field in the results.
FIELDS = ("role", "threads", "isa", "images")


def read_raw(path: Path) -> dict[str, Any]:
    """Read what the suites wrote with --benchmark-json. Raises UserError for anything else."""
    raw = read_json(path, again="Run the suites again")
    if not isinstance(raw, dict) or "versions" not in raw.get("machine_info", {}):
        raise UserError(f"{str(path)!r} was not written by these suites: run them with --benchmark-json={path}")  # fmt: skip
    return raw


def condensed(raws: Sequence[dict[str, Any]]) -> Benchmarks:
    """Convert pytest-benchmark's output from one or several runs on one machine to results, without the host name.

    Raises UserError when the runs are from several machines, or have no complete case.
    """
    about = [
        {
            "machine": {
                "processor": raw["machine_info"]["cpu"]["brand_raw"],
                "cores": raw["machine_info"]["cpu"]["count"],
                "gpu": raw["machine_info"]["gpu"],
            },
            "device": raw["machine_info"]["device"],
            "versions": raw["machine_info"]["versions"],
        }
        for raw in raws
    ]
    if any(other != about[0] for other in about):
        raise UserError(
            "the runs are from several machines, devices or versions: make a separate file for each"
        )
    cases: dict[str, list[dict[str, Any]]] = {}
    for raw in raws:
        for entry in raw["benchmarks"]:
            cases.setdefault(case_name(entry), []).append(entry)
    made = [case_of(name, entries) for name, entries in cases.items()]
    complete = sorted((case for case in made if case is not None), key=in_order)
    if not complete:
        raise UserError("no benchmark was measured: run the suites with --benchmark-enable")
    date = max(raw["datetime"][:10] for raw in raws)
    found = {entry["extra_info"].get("isa") for raw in raws for entry in raw["benchmarks"]} - {None}
    machine = {**about[0]["machine"], "isa": max(found, key=ORDER.index, default=None)}
    return Benchmarks.model_validate(
        {**about[0], "machine": machine, "date": date, "cases": complete}
    )


def in_order(case: dict[str, Any]) -> tuple[str, list[Any]]:
    """Sort key: suite, then name in natural order, so that a batch of 8 comes before one of 32."""
    parts = re.split(r"(\d+)", case["name"])
    return case["suite"], [int(part) if part.isdecimal() else part for part in parts]


def case_name(entry: dict[str, Any]) -> str:
    """The name of the group of contenders; for a test without contenders, followed by its parameters."""
    others = [str(v) for k, v in entry["params"].items() if k != "round_number"]
    return entry["group"] if "contender" in entry["params"] else ", ".join([entry["group"], *others])  # fmt: skip


def case_of(name: str, entries: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """One case. A contender that failed in a round is left out, as is a case without one of ours; both print a message."""
    rounds: dict[str, dict[int, dict[str, Any]]] = {}
    for entry in entries:
        contender = entry["params"].get("contender", "ours")
        rounds.setdefault(contender, {})[entry["params"]["round_number"]] = entry
    num = max(map(len, rounds.values()))
    for contender in [c for c, found in rounds.items() if len(found) < num]:
        print(f"{name}: {contender} is left out, it failed in a round", file=sys.stderr)
        del rounds[contender]
    contenders = [contender_of(c, [found[i] for i in sorted(found)]) for c, found in rounds.items()]
    if all(contender["role"] != "own" for contender in contenders):
        print(f"{name} is left out: none of ours was measured", file=sys.stderr)
        return None
    first = next(iter(next(iter(rounds.values())).values()))
    return {
        "name": name,
        "suite": Path(first["fullname"].split("::")[0]).parent.name,
        "threads": first["extra_info"].get("threads"),
        "isa": first["extra_info"].get("isa"),
        "images": first["extra_info"].get("images"),
        "contenders": contenders,
    }


def contender_of(name: str, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A contender's results, from its rounds in order."""
    times = [t for entry in entries for t in entry["stats"]["data"]]
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3  # fmt: skip
    facts = {
        key: value
        for key in entries[0]["extra_info"]
        if key not in FIELDS
        and (value := fact([entry["extra_info"].get(key) for entry in entries])) is not None
    }
    return {
        "name": name,
        "role": entries[0]["extra_info"]["role"],
        "seconds": [rounded(entry["stats"]["median"]) for entry in entries],
        "quartiles": [rounded(low), rounded(high)],
        "calls": sum(len(e["stats"]["data"]) * e["stats"]["iterations"] for e in entries),
        "facts": facts,
    }


def fact(values: Sequence[Any]) -> float | str | None:
    """One recorded value over all rounds: the median of numbers, the last of anything else."""
    if all(isinstance(value, int | float) for value in values):
        return rounded(statistics.median(values))
    return None if values[-1] is None else str(values[-1])


def rounded(value: float) -> float:
    """Rounded to five significant digits, more than any clock used here has."""
    return float(f"{value:.5g}")


def slug(machine: Machine) -> str:
    name = machine.gpu or f"{machine.processor} {machine.cores} cores {machine.isa or ''}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def keep(results: Benchmarks, folder: Path) -> Path:
    """Write results as DATE-MACHINE.json. An earlier run of that day is renamed to DATE-MACHINE.before, which git ignores."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results.date}-{slug(results.machine)}.json"
    if path.exists():
        path.replace(path.with_suffix(".before"))
    write_benchmarks(path, results)
    return path


def newest(device: str, *folders: Path, case: str | None = None) -> list[Path]:
    """The latest results for a device, one of each instruction set, the widest first.

    By the date in the file name; on the same date the last folder's. case: only of files that have this case.
    """
    latest: dict[str | None, Path] = {}
    for _, _, path in sorted(
        (p.name[:10], i, p) for i, f in enumerate(folders) for p in f.glob("*.json")
    ):
        results = read_benchmarks(path)
        if results.device == device and case in (None, *(c.name for c in results.cases)):
            latest[results.machine.isa] = path
    known = sorted((isa for isa in latest if isa), key=ORDER.index, reverse=True)
    return [latest[isa] for isa in (*known, *({None} & latest.keys()))]


def write_pages(root: Path = ROOT) -> None:
    """Write the measured tables and plots: speeds from the newest results, accuracies from a comparison."""
    comparison = root / "docs" / "results" / "compare-letters-digits.json"
    if comparison.exists():
        compared = read_json(comparison, again="Run ptgm-fast compare --seeds 5 again")
        tables = accuracy_tables.table(compared), accuracy_tables.differences(compared)
        for page, text in zip(("README.md", "docs/results.md"), tables, strict=True):
            result_tables.replace(root / page, "accuracy", text)
    kept = root / "benchmarks" / "results"
    full, short = root / "benchmarks" / "README.md", root / "README.md"

    def each(table: Callable[[Benchmarks, str], str], paths: Sequence[Path]) -> str:
        found = [table(read_benchmarks(p), p.relative_to(root).as_posix()) for p in paths]
        return "\n".join(found)

    if cpus := newest("cpu", kept):
        sources = {path.relative_to(root).as_posix(): read_benchmarks(path) for path in cpus}
        result_tables.replace(full, "measured", each(result_tables.full, cpus))
        result_tables.replace(short, "benchmarks", result_tables.short(sources))
        widest = next(iter(sources.values()))
        result_plots.ratios(widest, root / "docs" / "benchmark-ratios.png")
        result_plots.scaling(widest, root / "docs" / "benchmark-scaling.png")
    trained = newest("cpu", kept, kept / WHOLE_TRAININGS, case=result_tables.WHOLE_TRAINING)
    text = each(result_tables.recipes, trained) or result_tables.NO_RECIPES
    result_tables.replace(full, "recipes", text)
    if trained:
        widest = read_benchmarks(trained[0])
        result_plots.whole_trainings(widest, root / "docs" / "whole-trainings.png")
    text = each(result_tables.full, newest("cuda", kept)) or result_tables.NO_GPU
    result_tables.replace(full, "gpu measured", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "raw",
        nargs="*",
        type=Path,
        help="files that pytest wrote with --benchmark-json; none: pages only",
    )
    parser.add_argument(
        "--recipes", action="store_true", help="the runs are whole trainings only; prints their table"
    )  # fmt: skip
    arguments = parser.parse_args()
    try:
        if arguments.raw:
            results = condensed([read_raw(raw) for raw in arguments.raw])
            folder = ROOT / "benchmarks" / "results"
            path = keep(results, folder / WHOLE_TRAININGS if arguments.recipes else folder)
            source = path.relative_to(ROOT).as_posix()
            print(result_tables.recipes(results, source) if arguments.recipes else source)
        write_pages()
    except UserError as error:
        print(f"write_results: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
