"""Load the folders of a report: what exists, what is missing, what is damaged."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ptgm_fast.errors import UserError
from ptgm_fast.profiling import Profile, read_profile
from ptgm_fast.profiling import schema as profile_schema
from ptgm_fast.profiling import trace as profile_trace
from ptgm_fast.records import Model, read_json, read_record
from ptgm_fast.runs.artifacts import (
    COMPARISON,
    EVALUATION,
    PAIRS,
    PAIRS_PICTURE,
    ComparisonReport,
    EvaluationRecord,
    PairsRecord,
    Summary,
)
from ptgm_fast.runs.check import CHECK, CheckRecord
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.worth import BASELINES_FOLDER, THIS_RUN

OLDER = "the run was written by a version that did not record these, or has not finished"
REMOVE = "Remove it to report without it"
# Required keys of each kind of trace event that a report reads.
EVENT_KEYS = {
    "X": {"pid", "tid", "name", "cat", "ts", "dur"},
    "M": {"pid", "tid", "name", "args"},
    "C": {"name", "ts", "args"},
    "i": {"name", "ts"},
}


@dataclass(frozen=True)
class Tiles:
    """A target image, its soft label, and the pseudo samples made for it; images as data URIs."""

    class_name: str
    soft_label: dict[str, float]
    target: str
    samples: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One `train` folder. None marks missing parts; `notes` says why they are missing and what to do."""

    name: str
    path: Path
    config: str
    metrics: list[dict[str, Any]]
    summary: Summary | None
    evaluation: EvaluationRecord | None
    tiles: tuple[Tiles, ...]
    check: CheckRecord | None
    baselines: ComparisonReport | None
    profile: Profile | None
    trace: list[dict[str, Any]]
    notes: tuple[str, ...]

    @property
    def stages(self) -> list[str]:
        """The stages in the order in which they ran."""
        return list(dict.fromkeys(record["stage"] for record in self.metrics))


def load_folders(paths: Sequence[Path]) -> tuple[list[Run], dict[str, ComparisonReport]]:
    """Load runs, and comparisons by name, in the order given. Raises UserError for a folder that is neither or damaged."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("a run is given twice; list each folder once")
    runs: list[Run] = []
    comparisons: dict[str, ComparisonReport] = {}
    for path, name in zip(paths, _short_names(paths), strict=True):
        if not path.is_dir():
            raise UserError(
                f"{str(path)!r} is not a folder; give folders written by train or compare"
            )
        comparison = _optional(
            path / COMPARISON, ComparisonReport, "Run compare again in a new folder"
        )
        if comparison:
            comparisons[name] = comparison
        else:
            runs.append(_run(path, name))
    return runs, comparisons


def _short_names(paths: Sequence[Path]) -> list[str]:
    last = [path.resolve().name for path in paths]
    return last if len(set(last)) == len(last) else [str(path) for path in paths]


def _run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise UserError(
            f"{str(path)!r} holds no run (no config.toml); give a folder written by train or compare"
        )
    notes: list[str] = []
    summary = _optional(
        folder.summary, Summary, "A report needs folders written by train or compare"
    )
    metrics = _metrics(folder)
    if summary is None:
        notes.append(
            f"The run has not finished. Continue it with: ptgm-fast train --resume --out {path}"
        )
    evaluation = _optional(path / EVALUATION, EvaluationRecord, REMOVE)
    if evaluation is None:
        notes.append(f"No {EVALUATION} (confusion matrix, reliability diagram): {OLDER}.")
    tiles = _tiles(path)
    if not tiles:
        notes.append(f"No {PAIRS} (pseudo samples): {OLDER}.")
    profile, trace = None, []
    if (path / profile_schema.FILE).is_file():
        profile = read_profile(path)
        trace = _trace(path / profile_trace.FILE)
    else:
        notes.append(
            "No profile (times by phase, timeline): train with --profile to see where the time goes."
        )
    return Run(
        name=name,
        path=path,
        config=folder.config.read_text(encoding="utf-8"),
        metrics=metrics,
        summary=summary,
        evaluation=evaluation,
        tiles=tiles,
        check=_optional(path / CHECK, CheckRecord, REMOVE),
        baselines=_baselines(path),
        profile=profile,
        trace=trace,
        notes=tuple(notes),
    )


def _baselines(path: Path) -> ComparisonReport | None:
    """The comparison of the run with the baselines trained for it."""
    file = path / BASELINES_FOLDER / COMPARISON
    found = _optional(file, ComparisonReport, REMOVE)
    if found and not {THIS_RUN} < set(found.methods):
        raise UserError(
            f"{str(file)!r} needs a row {THIS_RUN!r} and at least one other row. {REMOVE}"
        )
    return found


def _metrics(folder: RunFolder) -> list[dict[str, Any]]:
    again = f"continue the run with: ptgm-fast train --resume --out {folder.path}"
    if not folder.metrics.is_file() or not folder.metrics.read_text(encoding="utf-8").strip():
        raise UserError(
            f"{str(folder.metrics)!r} is empty or missing: the run stopped before its first line. "
            f"There is nothing to report yet; {again}"
        )
    metrics = folder.read_metrics()
    lines = folder.metrics.read_text(encoding="utf-8").splitlines()
    # A kill truncates the last line; a broken line before it is damage, and the lines after it would be lost.
    if len(metrics) < len(lines) - 1:
        raise UserError(
            f"{str(folder.metrics)!r} is damaged: line {len(metrics) + 1} of {len(lines)} is not valid JSON. "
            "Remove that line"
        )
    if metrics and isinstance(metrics[0], dict) and "method" in metrics[0]:
        raise UserError(
            f"{str(folder.path)!r} is a comparison that has not finished (no compare.json); run compare again"
        )
    if not metrics or not all(map(_is_metric, metrics)):
        raise UserError(
            f"{str(folder.metrics)!r} has no metrics of a stage; a report needs folders written by train or compare"
        )
    return metrics


def _is_metric(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("stage"), str)
        and isinstance(record.get("step"), int)
        and all(isinstance(value, int | float) for name, value in record.items() if name != "stage")
    )


def _optional(path: Path, kind: type[Model], again: str) -> Model | None:
    """The content of a file, None if it does not exist."""
    return read_record(path, kind, again=again) if path.is_file() else None


def _tiles(path: Path) -> tuple[Tiles, ...]:
    record = _optional(path / PAIRS, PairsRecord, REMOVE)
    picture = path / PAIRS_PICTURE
    if record is None or not picture.is_file():
        return ()
    height, width = record.tile
    size = (width * (1 + record.samples), height * len(record.targets))
    try:
        with Image.open(picture) as opened:
            sheet = opened.copy()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{str(picture)!r} cannot be read ({error}). {REMOVE}") from None
    if sheet.size != size:
        raise UserError(
            f"{str(picture)!r} is {sheet.size[0]}x{sheet.size[1]}, but {PAIRS} describes {size[0]}x{size[1]}; "
            "remove both to report without them"
        )

    def tile(row: int, column: int) -> str:
        left, top = column * width, row * height
        buffer = io.BytesIO()
        sheet.crop((left, top, left + width, top + height)).save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    return tuple(
        Tiles(
            target.class_name,
            target.soft_label,
            tile(row, 0),
            tuple(tile(row, 1 + column) for column in range(record.samples)),
        )
        for row, target in enumerate(record.targets)
    )


def _is_event(event: Any) -> bool:
    return isinstance(event, dict) and EVENT_KEYS.get(event.get("ph", ""), {"ph"}) <= set(event)


def _trace(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    values = read_json(path, again=REMOVE)
    events = values.get("traceEvents") if isinstance(values, dict) else None
    if not isinstance(events, list) or not all(map(_is_event, events)):
        raise UserError(f"{str(path)!r} has no complete traceEvents. {REMOVE}")
    return events
