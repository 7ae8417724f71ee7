"""Do generator, classifier and target match? Runs samples through the classifier and looks for explanations of a mismatch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ptgm_fast import __version__
from ptgm_fast.config import RunConfig
from ptgm_fast.data.images import to_uint8
from ptgm_fast.kernels.views import resized
from ptgm_fast.models.weights import write_atomically
from ptgm_fast.records import Part, read_record
from ptgm_fast.runs.distance import MOST, distances, entropies, spread
from ptgm_fast.runs.misfits import Misfit, Readings, likely_misfit
from ptgm_fast.runs.pools import uniform_recipe
from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import SourceModels, Synthesis, conditioning_table, seeded
from ptgm_fast.sampling.recipe import weights_digest
from ptgm_fast.training.source.sheet import save_sheet

CHECK, SHEET = "check.json", "check.png"
SAMPLES = 512
# At the start of a run: few samples, so that it starts quickly, and more only to explain a mismatch.
SAMPLES_AT_START, EXPLAINED_AT_START = 64, 128
BATCH, SHEET_SIDE = 64, 64
# Top-1 agreement below which a run looks for an explanation, and below which it warns even without one.
GOOD, POOR = 0.8, 0.5
LISTED = 5


class Confused(Part):
    asked: str
    given: str
    share: float


class Explanation(Part):
    """What would make more samples agree, and the share that would then agree."""

    cause: str
    top1: float


class PairFigures(Part):
    """top1, top5: shares of samples whose label is the classifier's top prediction, or among its top five."""

    samples: int
    classes: int
    top1: float
    top5: float
    confused: tuple[Confused, ...]
    explanation: Explanation | None


class Uncertain(Part):
    image: int
    class_name: str
    entropy: float


class Alike(Part):
    classes: tuple[str, str]
    overlap: float


class TargetFigures(Part):
    """Figures of the labelled images' soft labels. Entropies are shares of log K_s; uncertain: by index in the training
    images; alike: pairs of target classes by the overlap sum_k min(q_a, q_b) of their mean soft labels; distance: from the
    source, see `distance.distances` (missing in records of earlier versions)."""

    images: int
    entropy: float
    distance: float | None = None
    uncertain: tuple[Uncertain, ...]
    alike: tuple[Alike, ...]


class CheckRecord(Part):
    """check.json. key: SHA-256 of everything that the figures depend on."""

    version: Literal[1] = 1
    key: str
    pair: PairFigures
    target: TargetFigures | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Samples:
    """labels: int64 [N]; readings: the classifier's predictions; pictures: uint8 [N, C, h, w], at most SHEET_SIDE per side."""

    labels: Tensor
    readings: Readings
    pictures: Tensor


def check(task: Task, out: Path, *, samples: int = SAMPLES) -> CheckRecord:
    """Compute figures of the pair and the target; write check.json and a sample sheet (check.png) to the folder `out`."""
    drawn = _draw(task.source, task.config, samples, every_way=True)
    record = _record(task, drawn, target_images=len(task.data.train), key=_key(task, samples))
    names = drawn.labels.unique().numel()
    out.mkdir(parents=True, exist_ok=True)
    save_sheet((drawn.pictures / 127.5 - 1).unflatten(0, (names, -1)), out / SHEET)
    _write(record, out)
    return record


def check_at_start(
    task: Task, folder: Path, on_notice: Callable[[str], None] = lambda message: None
) -> CheckRecord | None:
    """Check a few samples at the start of a run, and more to find an explanation if agreement is low.

    The record is kept in the run's folder. on_notice(message) receives the warnings. Returns None for a run that uses
    neither generator nor classifier.
    """
    if not _is_used(task.config):
        return None
    key, path = _key(task, SAMPLES_AT_START), folder / CHECK
    if path.is_file():
        found = read_record(path, CheckRecord, again="Remove it; it will be written again")
        if found.key == key:
            return found
    drawn = _draw(task.source, task.config, SAMPLES_AT_START, every_way=False)
    if drawn.readings.agreement() < GOOD:
        drawn = _draw(task.source, task.config, EXPLAINED_AT_START, every_way=True)
    asks = _asks(task.config)
    record = _record(task, drawn, target_images=MOST if asks else 0, key=key)
    _write(record, folder)
    for warning in record.warnings:
        on_notice(warning)
    return record


def agreement(source: SourceModels, config: RunConfig, samples: int) -> float:
    """The share of about `samples` samples for which the classifier predicts the label."""
    return _draw(source, config, samples, every_way=False).readings.agreement()


def _is_used(config: RunConfig) -> bool:
    return "pp" in config.stages or _asks(config)


def _asks(config: RunConfig) -> bool:
    """Whether the run applies the source classifier to target images."""
    return "p-ssl" in config.stages or config.supervised.distillation != "none"


def _key(task: Task, samples: int) -> str:
    source = task.source
    told: dict[str, Any] = {
        "version": __version__,
        "samples": [samples, task.config.seed],
        "generator": uniform_recipe(task.config, source).law,
        "classifier": weights_digest(source.classifier),
        "sees": [source.form, source.interpolation],
        "normalization": [source.mean.flatten().tolist(), source.std.flatten().tolist()],
        "data": task.config.data.model_dump(mode="json"),
        "soft labels": [task.config.p_ssl.pcs_temperature, task.config.p_ssl.pcs_top_k],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def _draw(source: SourceModels, config: RunConfig, samples: int, *, every_way: bool) -> _Samples:
    """Draw equally many samples of some classes, spread over all of them, and classify them.

    every_way: draw more of each class, and also classify them in every other `Way` of `misfits`.
    """
    per_class = 8 if every_way else 2
    number = max(1, min(source.num_classes, samples // per_class))
    chosen = torch.linspace(0, source.num_classes - 1, number).round().long()
    labels = chosen.repeat_interleave(max(per_class, samples // number)).to(source.device)
    synthesis = Synthesis(source, seed=config.seed, purpose="check", precision=config.precision)
    readings, pictures = Readings(source, labels.cpu(), every_way=every_way), []
    # A generator may use torch's own RNG.
    with seeded(config.seed, "check/samples"):
        for start in range(0, len(labels), BATCH):
            asked = labels[start : start + BATCH]
            images = synthesis.images(len(asked), start, asked, "class")
            readings.add(images)
            channels, *size = images.shape[1:]
            small = resized(images, channels, *(min(side, SHEET_SIDE) for side in size))
            pictures.append(to_uint8(small).cpu())
    return _Samples(labels.cpu(), readings, torch.cat(pictures))


def _record(task: Task, drawn: _Samples, *, target_images: int, key: str) -> CheckRecord:
    misfit = likely_misfit(drawn.readings)
    pair = _pair_figures(task, drawn, misfit)
    target = _target_figures(task, target_images) if target_images else None
    return CheckRecord(
        key=key, pair=pair, target=target, warnings=tuple(_warnings(pair, target, misfit))
    )


def _pair_figures(task: Task, drawn: _Samples, misfit: Misfit | None) -> PairFigures:
    names, labels, readings = task.source.generator.card.class_names, drawn.labels, drawn.readings
    given = readings.first()
    places = torch.stack([labels, given], 1)[given != labels]
    pairs, counts = places.unique(dim=0, return_counts=True)
    each = len(labels) // labels.unique().numel()
    most = counts.argsort(descending=True, stable=True)[:LISTED].tolist()
    return PairFigures(
        samples=len(labels),
        classes=len(labels) // each,
        top1=readings.agreement(),
        top5=readings.top5(),
        confused=tuple(
            Confused(
                asked=names[int(pairs[i, 0])],
                given=names[int(pairs[i, 1])],
                share=int(counts[i]) / each,
            )
            for i in most
        ),
        explanation=Explanation(cause=misfit.cause, top1=misfit.top1) if misfit else None,
    )


def _target_figures(task: Task, most: int) -> TargetFigures:
    config, data, source = task.config, task.data, task.source
    chosen = spread(task, most)
    soft = conditioning_table(
        source,
        data.asking[0][chosen],
        temperature=config.p_ssl.pcs_temperature,
        top_k=config.p_ssl.pcs_top_k or None,
    ).soft_labels.cpu()
    entropy = entropies(soft)
    plain = config.p_ssl.pcs_temperature == 1 and not config.p_ssl.pcs_top_k
    is_distance = plain and len(chosen) <= MOST
    labels, names = data.train.labels[chosen], data.train.class_names
    means = {int(k): soft[labels == k].mean(0) for k in labels.unique()}
    overlaps = sorted(
        (
            Alike(
                classes=(names[a], names[b]),
                overlap=float(torch.minimum(means[a], means[b]).sum()),
            )
            for a, b in combinations(means, 2)
        ),
        key=lambda pair: -pair.overlap,
    )
    order = entropy.argsort(descending=True, stable=True)[:LISTED].tolist()
    return TargetFigures(
        images=len(chosen),
        entropy=float(entropy.mean()),
        distance=float((entropy if is_distance else distances(task)).mean()),
        uncertain=tuple(
            Uncertain(
                image=int(chosen[i]), class_name=names[int(labels[i])], entropy=float(entropy[i])
            )
            for i in order
        ),
        alike=tuple(overlaps[:LISTED]),
    )


def _warnings(pair: PairFigures, target: TargetFigures | None, misfit: Misfit | None) -> list[str]:
    said = []
    agree = f"the source classifier agrees with {100 * pair.top1:.0f} % of {pair.samples} samples"
    if misfit:
        said.append(
            f"{agree}, but could agree with {100 * misfit.top1:.0f} %: {misfit.cause}. {misfit.fix}"
        )
    elif pair.top1 < POOR:
        said.append(
            f"{agree}: it may know other classes, or the samples may not show their classes. Its soft labels are "
            "worth little; look at the samples drawn by `ptgm-fast check`"
        )
    if target and target.entropy > 0.9:
        said.append(
            f"the soft labels of the target images are nearly uniform (entropy {100 * target.entropy:.0f} % of the maximum), so they do "
            "not tell the generator what to make. Lower p_ssl.pcs_temperature, or choose another source pair"
        )
    if target and target.alike and target.alike[0].overlap > 0.95:
        first, second = target.alike[0].classes
        said.append(
            f"the target classes {first} and {second} ask for the same source classes (overlap {100 * target.alike[0].overlap:.0f} %): "
            "pseudo samples cannot distinguish them"
        )
    return said


def _write(record: CheckRecord, folder: Path) -> None:
    text = json.dumps(record.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    write_atomically(folder / CHECK, text.encode())
