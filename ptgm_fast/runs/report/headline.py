"""A run in a few lines: its accuracy, what it compares with, how long it took, what to try next."""

from __future__ import annotations

from collections.abc import Iterator

from ptgm_fast.runs.report.load import Run
from ptgm_fast.runs.worth import THIS_RUN


def headline(run: Run) -> Iterator[str]:
    """The lines at the top of the page, for a finished run."""
    summary = run.summary
    if summary is None:
        return
    target, seconds = summary.target, sum(stage.seconds for stage in summary.stages.values())
    images = f" of {run.evaluation.images:,} test images" if run.evaluation else ""
    yield (
        f"{100 * target.test_accuracy:.2f} %{images} correct, from {target.train_images:,} labelled images in {seconds:.0f} s of training."
    )
    if run.baselines:
        yield run.baselines.verdict
    yield f"Next: {_next(run)}"


def _next(run: Run) -> str:
    config = run.path / "config.toml"
    if run.check and run.check.warnings:
        return "fix what the check of the source pair warns about, below; until then its soft labels are worth little."
    if not {"pp", "p-ssl"} & set(run.stages):
        return f"ptgm-fast compare {config} measures what pseudo data would add."
    if run.baselines is None:
        return f"ptgm-fast train --resume --baselines --out {run.path} measures what the pseudo data added."
    rows = run.baselines.methods
    best = max((row.mean, name) for name, row in rows.items() if name != THIS_RUN)
    if rows[THIS_RUN].mean <= best[0]:
        return (
            f"on this seed {best[1]} alone is as good and takes {rows[best[1]].seconds:.0f} s; "
            f"ptgm-fast compare {config} --seeds 5 shows whether that holds."
        )
    return (
        f"ptgm-fast compare {config} --seeds 5 tells the gain from chance; ptgm-fast tune {config} looks for the same "
        "accuracy in less time."
    )
