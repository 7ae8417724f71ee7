"""`ptgm-fast profile`, and what `train --profile` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from ptgm_fast.cli.ui import console, served_from
from ptgm_fast.profiling import Profile, read_profile
from ptgm_fast.profiling.schema import FILE, StageProfile
from ptgm_fast.runs.worth import gains_of

# Phases that process images; a rate would be meaningless for the others.
ON_SYNTHESIZED = {"latents", "generator"}
ON_TRAINED = {"views", "forward", "loss", "backward", "classifier"}


def run(folders: list[Path]) -> None:
    profiles = [(folder, read_profile(folder)) for folder in folders]
    for folder, profile in profiles:
        if len(profiles) > 1:
            console.print(str(folder), style="bold")
        show(profile)
        _show_gains(folder)


def written_at(folder: Path) -> int:
    """Modification time of the folder's profile in nanoseconds, 0 if there is none."""
    path = folder / FILE
    return path.stat().st_mtime_ns if path.is_file() else 0


def show_new_profile(folder: Path, before: int) -> None:
    """Print the profile that a run has just written, if it wrote one."""
    if written_at(folder) == before:
        console.print("no steps were run, so nothing was profiled")
        return
    show(read_profile(folder))
    _show_gains(folder)
    console.print(
        f"in {folder}: profile.json, trace.json (open it in ui.perfetto.dev or chrome://tracing)"
    )


def show(profile: Profile) -> None:
    console.print(profile_table(profile))
    for line in lines(profile):
        console.print(line, soft_wrap=True)


def _show_gains(folder: Path) -> None:
    """Print what the time bought."""
    for line in gains_of(folder):
        console.print(line, soft_wrap=True)


def profile_table(profile: Profile) -> Table:
    """Seconds, share and images/s of each stage and phase, and milliseconds per step in the steady state."""
    table = Table(title="Where the time went", title_justify="left")
    for name in ("stage", "phase", "seconds", "share", "steady ms/step", "images/s"):
        table.add_column(name, justify="left" if name in ("stage", "phase") else "right")
    total = sum(stage.seconds for stage in profile.stages) or 1.0
    for stage in profile.stages:
        table.add_section()
        steady = stage.steady
        a_step = f"{1e3 * steady.seconds / steady.steps:.2f}" if steady else ""
        rate = _rate(stage.images_trained, stage.seconds)
        table.add_row(
            stage.name, "all", f"{stage.seconds:.2f}", f"{stage.seconds / total:.0%}", a_step, rate
        )
        if not stage.spans:
            continue
        steadily = stage.phases(steady=True) if steady else {}
        for phase, seconds in stage.phases().items():
            images = stage.images_trained if phase in ON_TRAINED else None
            images = stage.images_synthesized if phase in ON_SYNTHESIZED else images
            a_step = f"{1e3 * steadily.get(phase, 0.0) / steady.steps:.2f}" if steady else ""
            table.add_row(
                "",
                phase,
                f"{seconds:.2f}",
                f"{seconds / total:.0%}",
                a_step,
                _rate(images, seconds),
            )
    return table


def _rate(images: int | None, seconds: float) -> str:
    return f"{images / seconds:,.0f}" if images and seconds > 0 else ""


def lines(profile: Profile) -> Iterator[str]:
    """What the table leaves out, one line each; the last line names the bottleneck."""
    for stage in profile.stages:
        if stage.steps:
            yield _about(stage)
    hardware = profile.hardware
    memory = [f"{hardware.peak_rss_bytes / 2**20:,.0f} MiB of memory"]
    if hardware.peak_gpu_bytes is not None:
        memory.append(f"{hardware.peak_gpu_bytes / 2**20:,.0f} MiB on the GPU")
    gauges = [
        f"{gauge.name} {gauge.mean:.0f} {gauge.unit}"
        for gauge in hardware.gauges
        if gauge.unit != "bytes"
    ]
    energy = (
        [f"{1e3 * hardware.joules_per_image:.1f} mJ per image"] if hardware.joules_per_image else []
    )
    yield f"peak {', '.join(memory)}; on average {', '.join([*gauges, *energy])}"
    yield from hardware.notes
    if not profile.complete:
        yield "the run was stopped early: this covers what it did until then"
    yield profile.bottleneck


def _about(stage: StageProfile) -> str:
    parts = []
    if stage.images_synthesized is not None:
        served = served_from(
            stage.pool_bytes or 0, stage.reuse or 1.0, stage.seconds_saved, stage.joules_saved
        )
        parts.append(
            f"{stage.images_synthesized:,} images synthesized, {stage.images_served:,} served{served}"
        )
    if stage.steady:
        settled = "" if stage.steady.settled else " (still varying)"
        parts.append(
            f"steady from step {stage.steady.first_step}{settled}: median {1e3 * stage.steady.median_step_seconds:.2f}, "
            f"95th percentile {1e3 * stage.steady.p95_step_seconds:.2f} ms per step"
        )
    else:
        parts.append("too few steps to separate the steady state from warm-up")
    overlap = stage.overlap
    if overlap is None:
        parts.append(f"no overlap: {stage.overlap_reason or 'nothing runs alongside the trainer'}")
    else:
        share = "-" if overlap.efficiency is None else f"{overlap.efficiency:.0%}"
        parts.append(
            f"overlap efficiency {share} ({overlap.hidden_seconds:.2f} of {overlap.hideable_seconds:.2f} s hidden), "
            f"consumer waited {overlap.consumer_wait_seconds:.2f} s, producer {overlap.producer_wait_seconds:.2f} s"
        )
    if stage.precision:
        parts.append(f"forward in {stage.precision}")
    if stage.compile_seconds:
        parts.append(f"{stage.compile_seconds:.1f} s of compiling ({stage.compile_reason})")
    return f"{stage.name}: {'; '.join(parts)}"
