"""The tables of benchmarks/README.md and README.md, from result files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from result_file import Benchmarks, CaseResult, Contender, duration

from ptgm_fast.models.weights import write_atomically

NO_GPU = "Nothing yet: see [docs/gpu.md](../docs/gpu.md).\n"
WHOLE_TRAINING = "a whole training, 2 threads"
# The README's rows: label and case.
HEADLINES = {
    "PP, 20 training steps": "PP, 20 steps, 2 threads",
    "P-SSL, 20 training steps": "P-SSL, 20 steps, 2 threads",
    "a whole training": WHOLE_TRAINING,
    "BigGAN-deep 128, 32 images": "biggan-deep 128, batch 32, 2 threads",
    "the bundled letters generator, 128 images": "letters, batch 128, 2 threads",
    "`views`, weak and strong, 128x3x32x32": "two random views, 128x3x32x32, 2 threads",
    "`consistency` (UDA) and gradient, 256x1000": "uda 256x1000, 100% count, 2 threads",
    "`cond_norm_act` with upsampling, 32x128x32x32": "upsample 32x128x32x32, 2 threads",
}
# The rows of whole trainings: label, contenders in both layouts, and what the gain over the row above is due to.
RECIPES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("a plain loop, the recipe of 0.1.0", ("eager, old recipe", "eager channels-last, old recipe"), ""),
    ("a plain loop, the default's recipe", ("eager", "eager channels-last"), "the recipe"),
    ("ours, the default's recipe", ("ours", "ours"), "the engine"),
)  # fmt: skip
NO_RECIPES = "Not measured yet: make recipes.\n"
IN_COLUMNS = ("eager", "compile")
TITLES = {"compile": "torch.compile", "eager": "eager PyTorch", "eager channels-last": "eager PyTorch, channels-last"}  # fmt: skip


def replace(page: Path, name: str, text: str) -> None:
    """Put `text` between a page's two markers of this name."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    whole = before + begin + text + end + rest.split(end)[1]
    write_atomically(page, whole.encode())


def times(ratio: float) -> str:
    """1.2x, 12x, 120x."""
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"


def spread(contender: Contender) -> str:
    """The standard deviation of the rounds' medians, in percent; empty for a single round."""
    if len(contender.seconds) < 2:
        return ""
    share = statistics.stdev(contender.seconds) / statistics.fmean(contender.seconds)
    return f"{100 * share:.1f}"


def where(results: Benchmarks, source: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    rounds = sorted({len(c.seconds) for case in results.cases for c in case.contenders})
    counts = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return f"{results.date}, {results.machine.title}; {versions}; rounds: {counts} (`{source}`)."


def full(results: Benchmarks, source: str) -> str:
    """One row per contender of ours: its time, and how many times as long each other contender takes."""
    rows = [
        "| what, size, threads | ours (quartiles) | ± % | eager PyTorch | torch.compile | others |",
        "|---|---|---|---|---|---|",
    ]
    for case in results.cases:
        others = [c for c in case.contenders if c.role != "own"]
        for i, own in enumerate(case.of_role("own") if others else ()):
            # If several forms of ours run, each gets a row; the first one represents the case.
            label = case.name if i == 0 else f"{case.name}: {own.name}"
            ratios = {c.name: times(c.median / own.median) for c in others}
            rest = "; ".join(f"{n} {ratio}" for n, ratio in ratios.items() if n not in IN_COLUMNS)
            low, high = map(duration, own.quartiles)
            columns = " | ".join(ratios.get(name, "") for name in IN_COLUMNS)
            rows.append(
                f"| {label} | {duration(own.median)} ({low} – {high}) | {spread(own)} | {columns} | {rest} |"
            )
    return "\n".join([where(results, source), "", *rows, *facts(results.cases)]) + "\n"


def facts(cases: Sequence[CaseResult]) -> list[str]:
    """Values that the suites recorded beside times: rates, accuracies, ratios to a bound."""
    rows = [
        f"| {case.name} | {contender.name} | {duration(contender.median)} | "
        + "; ".join(f"{key} {value}" for key, value in contender.facts.items())
        + " |"
        for case in cases
        for contender in case.contenders
        if contender.facts
    ]
    head = ["", "| what | contender | time | noted beside it |", "|---|---|---|---|"]
    return [*head, *rows] if rows else []


def recipes(results: Benchmarks, source: str) -> str:
    """Whole trainings: the plain loop with both recipes, and ours; the gain of each row over the previous and the first row.

    The plain loop's times are for torch's default layout, then channels-last.
    """
    case = next((c for c in results.cases if c.name == WHOLE_TRAINING), None)
    if case is None:
        return NO_RECIPES
    found = {contender.name: contender for contender in case.contenders}
    rows = [
        "| a whole training, default layout; channels-last | takes | test accuracy | gain over the row above | over the first |",
        "|---|---:|---:|---:|---:|",
    ]
    before: list[Contender | None] = [None, None]
    first: list[Contender | None] = [None, None]
    for label, names, gain in RECIPES:
        ran = [found.get(name) for name in names]
        first = first if gain else ran
        takes, noted = (
            "; ".join(dict.fromkeys(show(c) if c else "failed" for c in ran))
            for show in (lambda c: duration(c.median), _accuracy)
        )
        columns = [gains(others, ran) if gain else "" for others in (before, first)]
        if gain:
            columns[0] += f" ({gain})"
        rows.append(f"| {label} | {takes} | {noted} | {' | '.join(columns)} |")
        before = ran
    return "\n".join([*rows, "", where(results, source)]) + "\n"


def gains(others: Sequence[Contender | None], ours: Sequence[Contender | None]) -> str:
    """How many times as long the others take, pair by pair."""
    pairs = zip(others, ours, strict=True)
    return "; ".join(times(a.median / b.median) if a and b else "-" for a, b in pairs)


def _accuracy(contender: Contender) -> str:
    value = contender.facts.get("test accuracy", "-")
    return f"{100 * value:.2f} %" if isinstance(value, float) else value


def short(sources: Mapping[str, Benchmarks]) -> str:
    """The README's rows, for each machine: our time, how many times as long the fastest peer takes, and which one that is."""
    machines = [results.machine for results in sources.values()]
    names = [machine.isa_title or machine.processor for machine in machines]
    heads = [f"{name}: ours | fastest other way takes" for name in names]
    rows = [f"| what | {' | '.join(heads)} |", "|---" + "|---:|---" * len(names) + "|"]
    for label, name in HEADLINES.items():
        columns = [_against_peer(results, name) for results in sources.values()]
        if any(columns):
            rows.append(f"| {label} | {' | '.join(column or '- | -' for column in columns)} |")
    told = [
        f"{name}: {r.date}, {r.machine.cores} cores of {r.machine.processor}, torch {r.versions['torch']} ([{path}]({path}))."
        for name, (path, r) in zip(names, sources.items(), strict=True)
    ]
    return "\n".join([*rows, "", " ".join(told)]) + "\n"


def _against_peer(results: Benchmarks, name: str) -> str:
    case = next((case for case in results.cases if case.name == name), None)
    if case is None or (peer := case.best_peer) is None:
        return ""
    own = case.of_role("own")[0].median
    return f"{duration(own)} | {times(peer.median / own)} ({TITLES.get(peer.name, peer.name)})"
