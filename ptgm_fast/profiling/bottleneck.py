"""Name a run's bottleneck in one sentence, with the setting that moves it."""

from __future__ import annotations

from collections.abc import Sequence

from ptgm_fast.profiling.schema import MAIN, WAIT, StageProfile

# The config table that holds each stage's budget.
SECTION = {"pp": "pp", "supervised": "training", "p-ssl": "training"}


def moving_setting(stage: str, phase: str) -> tuple[str, str] | None:
    """The setting that affects a phase of a stage, and how to change it; None for a user-defined stage or phase."""
    section = SECTION.get(stage)
    if section is None:
        return None
    synthesis = (
        ("p_ssl.batch_size", "lower: fewer pseudo samples a step")
        if stage == "p-ssl"
        else ("pp.steps", "lower: fewer images to make")
    )
    network = ("target.network", "a lighter network")
    return {
        "latents": synthesis,
        "generator": synthesis,
        "conditioning": ("data.labels_per_class", "lower: fewer target images to condition on"),
        "views": (f"{section}.views", "cheaper views"),
        "classifier": ("p_ssl.source_label", '"condition" runs the source classifier less often')
        if stage == "p-ssl"
        else ("supervised.distillation", '"none" does not use the source classifier'),
        "forward": network,
        "backward": network,
        "optimizer": network,
        "loss": (f"{section}.batch_size", "lower"),
        "evaluation": ("training.validate_every", "higher: fewer validations"),
        "checkpoint": (f"{section}.checkpoint_every", "higher: fewer checkpoints"),
        "other": (f"{section}.batch_size", "higher: less overhead per image"),
    }.get(phase)


def bottleneck(stages: Sequence[StageProfile]) -> str:
    """One sentence about the stage that took longest, based on its steady state if it has one."""
    if not stages:
        return "Nothing was timed."
    longest = max(stages, key=lambda s: s.seconds)
    total = sum(s.seconds for s in stages)
    share = f"{longest.seconds / total:.0%} of {total:.1f} s" if total else "all"
    if not longest.steps:
        return f"Bottleneck: {longest.name} ({share}), a fixed cost that does not depend on the number of steps; it weighs less in a longer run."
    phases = longest.phases(steady=True)
    phase = next(iter(phases))
    within = f"{phases[phase] / max(sum(phases.values()), 1e-12):.0%} of {longest.name}"
    if phase == WAIT:
        phase = _producers_longest(longest)
        what = f"the trainer waits for its producer ({within}), which spends most time on {phase}"
    else:
        what = f"{phase}, {within}"
    setting = moving_setting(longest.name, phase)
    advice = f"; --set {setting[0]}=... moves it ({setting[1]})" if setting else ""
    return f"Bottleneck: {what} ({longest.name} is {share}){advice}."


def _producers_longest(stage: StageProfile) -> str:
    seconds: dict[str, float] = {}
    for span in stage.spans:
        if span.lane != MAIN and len(span.path) == 1 and span.path[0] != WAIT:
            seconds[span.path[0]] = seconds.get(span.path[0], 0.0) + span.seconds
    return max(seconds, key=lambda name: seconds[name]) if seconds else "other"
