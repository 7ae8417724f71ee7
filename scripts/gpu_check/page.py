"""The summary page: at most forty lines with the results of all parts, and the defaults that they suggest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from records import Record, read

SECTIONS = {
    1: "environment",
    2: "tests marked gpu",
    3: "default training",
    4: "BigGAN-deep, batch 256",
    5: "training steps, batch 256",
    6: "kernels",
    7: "compute-sanitizer",
}
LINES, WIDTH = 40, 160
# The smallest speedup that justifies another default.
WORTH = 1.05
# The figures shown of each section, in this order, as far as there is room; the rest is in its file.
FIRST = {
    1: ("versions", "driver", "copy", "products", "launches"),
    2: (),
    3: ("default train", "overlap ahead", "captured", "no host sync"),
    4: ("original, tf32", "rewritten, tf32", "rewritten, bfloat16", "captured, bfloat16", "compiled, bfloat16"),
    5: ("target step, bfloat16", "p-ssl, overlap never", "p-ssl, overlap ahead", "idle, overlap ahead"),
    6: ("views 64x3x128x128, two", "cond_norm_act 32x128x32x32, upsample, float32", "ops"),
    7: ("memcheck",),
}  # fmt: skip


def counted(records: Sequence[Record]) -> str:
    good, bad = (sum(r.ok is wanted for r in records) for wanted in (True, False))
    rest = len(records) - good - bad
    return f"{good} ok, {bad} failed, {rest} not tried" if records else "not run"


def page(out: Path) -> str:
    """Every section's counts, then failures, then figures, up to forty lines."""
    found = {part: read(out, part) for part in SECTIONS}
    asked = [f"  {line}" for line in defaults(found)]
    room = LINES - 1 - len(SECTIONS) - 1 - len(asked)
    shown: dict[int, list[str]] = {part: [] for part in SECTIONS}
    failed = {p: [r for r in records if r.ok is False] for p, records in found.items()}
    figures = {
        p: [r for name in FIRST[p] for r in records if r.name == name and r.ok]
        for p, records in found.items()
    }
    # In turn, so that no section takes the lines of the others.
    for mark, lines in (("FAIL ", failed), ("", figures)):
        while room > 0 and any(lines.values()):
            for part, records in lines.items():
                if records and room > 0:
                    record = records.pop(0)
                    shown[part].append(f"  {mark}{record.name}: {record.text}"[:WIDTH])
                    room -= 1
    text = [f"gpu-check: {counted([r for records in found.values() for r in records])}"]
    for part, title in SECTIONS.items():
        text += [f"{part}. {title}: {counted(found[part])}", *shown[part]]
    return "\n".join([*text, "defaults that these figures ask for", *asked]) + "\n"


def defaults(found: dict[int, list[Record]]) -> list[str]:
    """capture, overlap, compile, precision: what was measured, and the default it suggests."""
    facts = {r.name: r.facts for p in (3, 4, 5) for r in found[p] if r.ok}
    return [
        _choice("engine.overlap", facts, "p-ssl, overlap never", "p-ssl, overlap ahead", "never", "ahead, as it is on GPUs"),
        _choice("engine.capture", facts, "p-ssl, overlap ahead", "p-ssl, captured", "false, as it is", "true"),
        _choice("FastSampler(capture)", facts, "rewritten, bfloat16", "captured, bfloat16", "False, as it is", "True"),
        _choice("compile (generator)", facts, "rewritten, bfloat16", "compiled, bfloat16", "never", "compiled"),
        _choice("compile (target)", facts, "target step, bfloat16", "target step compiled, bfloat16", "never", "compiled"),
        _choice("precision", facts, "rewritten, tf32", "rewritten, bfloat16", "float32 with TF32", "bfloat16, as it is on GPUs"),
        _choice("deterministic", facts, "p-ssl, overlap ahead", "p-ssl, not deterministic", "true, as it is", "a choice: false is faster"),
    ]  # fmt: skip


def _choice(
    what: str, facts: dict[str, dict[str, Any]], before: str, after: str, keep: str, take: str
) -> str:
    times = [facts.get(name, {}).get("seconds") for name in (before, after)]
    if None in times:
        missing = after if times[1] is None else before
        return f"{what}: not known, {missing!r} has no figure"
    gain = times[0] / times[1]
    return f"{what}: {take if gain >= WORTH else keep} ({after!r} {gain:.2f}x {before!r})"
