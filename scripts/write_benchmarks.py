"""Condense what pytest-benchmark measured and write the tables of benchmarks/README.md from it.

pytest benchmarks --benchmark-enable --benchmark-only --benchmark-json=raw.json
python scripts/write_benchmarks.py raw.json        # raw.json -> benchmarks/results/measured.json -> the tables
python scripts/write_benchmarks.py                 # the tables again, from the condensed file
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "measured.json"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
PACKAGES = ("torch", "torchvision", "kornia", "scipy", "pytorch-pretrained-biggan")
# The contenders that are this project's, in all their forms; the others are measured against them.
OWN = ("fused", "optimized")


def condensed(raw: dict[str, Any]) -> dict[str, Any]:
    """Medians and quartiles in microseconds of each contender of each group; the machine without its name."""
    cpu = raw["machine_info"]["cpu"]
    groups: dict[str, dict[str, Any]] = {}
    ring: dict[str, float] = {}
    for entry in raw["benchmarks"]:
        stats = entry["stats"]
        # What has a bound instead of contenders.
        ring |= {
            f"{entry['name']}: {name}": value
            for name, value in entry["extra_info"].items()
            if name in ("of the bound", "microseconds a batch")
        }
        if "contender" not in entry["params"]:
            continue
        groups.setdefault(entry["group"], {})[entry["params"]["contender"]] = {
            "median": round(stats["median"] * 1e6, 2),
            "quartiles": [round(stats["q1"] * 1e6, 2), round(stats["q3"] * 1e6, 2)],
            "rounds": stats["rounds"],
        }
    return {
        "date": raw["datetime"][:10],
        "cpu": cpu["brand_raw"],
        "cores": cpu["count"],
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "groups": dict(sorted(groups.items())),
        "ring": ring,
    }


def times(ratio: float) -> str:
    """1.2x, 12x, 120x."""
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def table(results: dict[str, Any]) -> str:
    """A row a group: our time, and how many times as long each other contender takes."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{results['date']}, {results['cores']} cores of {results['cpu']}; {versions}. The contenders of a row ran in one process; medians.",
        "",
        "| what, size, threads | ours, µs (quartiles) | eager PyTorch | torch.compile | others |",
        "|---|---|---|---|---|",
    ]
    for group, contenders in results["groups"].items():
        for name, own in contenders.items():
            if not name.startswith(OWN):
                continue
            # Where several fused forms run, each is a row; the plain one stands for the op.
            label = group if name in OWN else f"{group}: {name}"
            ratios = {
                other: times(entry["median"] / own["median"])
                for other, entry in contenders.items()
                if not other.startswith(OWN)
            }
            rest = "; ".join(f"{k} {v}" for k, v in ratios.items() if k not in ("eager", "compile"))
            low, high = own["quartiles"]
            lines.append(
                f"| {label} | {own['median']:,.0f} ({low:,.0f}–{high:,.0f}) | {ratios.get('eager', '')}"
                f" | {ratios.get('compile', '')} | {rest} |"
            )
    bounds = [v for name, v in results.get("ring", {}).items() if name.endswith("of the bound")]
    if bounds:
        cost = results["ring"]["test_overhead[thread]: microseconds a batch"]
        lines += [
            "",
            f"The ring: n batches take {min(bounds):.3f} to {max(bounds):.3f} times n max(s, t) + min(s, t), for a producer of s and a "
            f"consumer of t seconds, s / t from 0.2 to 5; a batch costs it {cost:.0f} µs.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) > 1:
        raw = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        RESULTS.parent.mkdir(exist_ok=True)
        measured = condensed(raw)
        if RESULTS.is_file():
            # Suites that were not run this time keep their figures, if they are from the same machine.
            earlier = json.loads(RESULTS.read_text(encoding="utf-8"))
            if all(earlier[key] == measured[key] for key in ("cpu", "cores", "versions")):
                measured["groups"] = dict(sorted((earlier["groups"] | measured["groups"]).items()))
                measured["ring"] = earlier.get("ring", {}) | measured["ring"]
        RESULTS.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + table(results) + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
