"""The page: figures and tables of the runs side by side, in one file that loads nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ptgm_fast import __version__
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import write_atomically
from ptgm_fast.runs import figures
from ptgm_fast.runs.plots import to_svg
from ptgm_fast.runs.report.headline import headline
from ptgm_fast.runs.report.load import Run, load_folders
from ptgm_fast.runs.report.timeline import timeline
from ptgm_fast.runs.worth import validated


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page about folders written by `train` and `compare`, and return its path.

    out: by default ``report.html`` in the first folder. Parts that a folder lacks are left out, with a note that says why.
    Raises UserError for any other folder, for a damaged file, and if `out` is not a file in an existing folder.
    """
    if not folders:
        raise UserError("name at least one run folder")
    runs, comparisons = load_folders(folders)
    out = out or folders[0] / "report.html"
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise UserError(
            f"--out {str(out)!r} must be a file in a folder that exists, such as report.html"
        )
    page = _template().render(
        title=", ".join([*(run.name for run in runs), *comparisons]),
        version=__version__,
        style=files("ptgm_fast").joinpath("assets/report/style.css").read_text(encoding="utf-8"),
        runs=[_run(run) for run in runs],
        comparisons=[
            {"name": name, "report": report, "figure": figures.comparison(report.methods)}
            for name, report in comparisons.items()
        ],
    )
    write_atomically(out, page.encode())
    return out


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = lambda figure: Markup(to_svg(figure))
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.2f} %"
    source = files("ptgm_fast").joinpath("assets/report/page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _run(run: Run) -> dict[str, Any]:
    """The template's values for a run; missing parts are None."""
    profile = run.profile
    summary = run.summary.model_dump() if run.summary else None
    return {
        "name": run.name,
        "headline": list(headline(run)),
        "gains": list(validated(run.metrics, summary["stages"])) if summary else (),
        "summary": run.summary,
        "seconds": sum(stage.seconds for stage in run.summary.stages.values())
        if run.summary
        else None,
        "notes": run.notes,
        "curves": [(stage, figures.curves(run.metrics, [stage])) for stage in run.stages],
        "profile": profile,
        "time_bars": figures.time_bars(profile) if profile else None,
        "timeline": timeline(profile, run.trace) if profile else None,
        "tiles": run.tiles,
        "check": run.check,
        "evaluation": run.evaluation,
        "confused": _most_confused(run) if run.evaluation else (),
        "confusion": figures.confusion(run.evaluation) if run.evaluation else None,
        "reliability": figures.reliability(run.evaluation) if run.evaluation else None,
        "config": run.config,
        "environment": _environment(run),
    }


def _most_confused(run: Run) -> list[tuple[str, str, int]]:
    """The five most frequent confusions: true class, predicted class, number of images."""
    assert run.evaluation is not None
    names = run.evaluation.class_names
    mistakes = [
        (names[row], names[column], count)
        for row, counts in enumerate(run.evaluation.confusion)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:5]


def _environment(run: Run) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run.summary:
        facts["device"] = f"{run.summary.device}, {run.summary.num_threads} thread(s)"
        facts.update(run.summary.versions)
        source = run.summary.source
        facts["generator"] = str(source.get("generator", ""))
        facts.update({f"sha256 of {n}": digest for n, digest in source.get("sha256", {}).items()})
    if run.profile:
        hardware = run.profile.hardware
        facts["processor"] = f"{hardware.processor}, {hardware.cores} logical cores"
        facts["peak memory"] = f"{hardware.peak_rss_bytes / 2**20:,.0f} MiB"
        if hardware.peak_gpu_bytes is not None:
            facts["peak GPU memory"] = f"{hardware.peak_gpu_bytes / 2**20:,.0f} MiB"
    return facts
