"""The JSON files of a run folder, the models that read them back, and the pictures of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ptgm_fast.data.images import encode_png, to_uint8
from ptgm_fast.kernels.views import resized
from ptgm_fast.models.weights import write_atomically
from ptgm_fast.records import Part, read_record
from ptgm_fast.runs.formats import top_classes
from ptgm_fast.sampling import Synthesis, conditioning_table
from ptgm_fast.training.evaluation import Evaluation, reliability_bins

if TYPE_CHECKING:
    from ptgm_fast.runs.folder import RunFolder
    from ptgm_fast.runs.task import Task

SUMMARY, COMPARISON = "summary.json", "compare.json"
EVALUATION, PAIRS, PAIRS_PICTURE = "evaluation.json", "pairs.json", "pairs.png"
NUM_TARGETS, NUM_SAMPLES = 10, 8
# Larger tiles add nothing to a page.
MAX_SIDE = 128


class Noted(BaseModel):
    """The fields that are read back; extra fields in the file are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _older_spelling(cls, values: Any) -> Any:
        if isinstance(values, dict) and "images_synthesised" in values:
            return {k.replace("synthesised", "synthesized"): v for k, v in values.items()}
        return values


class TargetSummary(Noted):
    network: str
    train_images: int
    test_accuracy: float
    val_accuracy: float | None
    ece: float


class StageSummary(Noted):
    seconds: float
    images_per_second: float
    images_synthesized: int
    # For pools; runs written before pools existed lack these.
    images_served: int | None = None
    reuse: float = 1.0
    pool_bytes: int = 0
    seconds_saved: float | None = None


class Summary(Noted):
    """summary.json of `train`."""

    task: str
    seed: int
    device: str
    num_threads: int
    versions: dict[str, str]
    source: dict[str, Any]
    stages: dict[str, StageSummary]
    target: TargetSummary


class Method(Noted):
    """A row of compare.json. test_accuracy: one per seed; mean, std: of test_accuracy; the rest: one value over all seeds."""

    test_accuracy: tuple[float, ...] = Field(min_length=1)
    mean: float
    std: float
    ece: float
    seconds: float
    images_synthesized: int


class ComparisonReport(Noted):
    """compare.json."""

    methods: dict[str, Method] = Field(min_length=1)
    verdict: str = ""


class Bin(Part):
    count: int
    confidence: float
    accuracy: float


class EvaluationRecord(Part):
    """evaluation.json. confusion: counts [true][predicted] on the test images; reliability: equal-width confidence bins."""

    version: Literal[1] = 1
    images: int
    accuracy: float
    ece: float
    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]


class Target(Part):
    class_name: str
    soft_label: dict[str, float]


class PairsRecord(Part):
    """pairs.json: describes the tiles of pairs.png. tile: height and width in pixels; samples: pseudo samples per row."""

    version: Literal[1] = 1
    tile: tuple[int, int]
    samples: int
    targets: tuple[Target, ...]


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of a finished run's summary.json. Raises UserError if it is damaged."""
    again = f"Remove it; it is rewritten by: ptgm-fast train --resume --out {folder}"
    found = read_record(folder / SUMMARY, Summary, again=again)
    return found.model_dump(mode="json")


def read_comparison(folder: Path) -> dict[str, Any]:
    """The content of compare.json. Raises UserError if it is damaged."""
    again = "Remove it; running the same command again rewrites it"
    found = read_record(folder / COMPARISON, ComparisonReport, again=again)
    return found.model_dump(mode="json")


def write_evaluation(test: Evaluation, class_names: Sequence[str], folder: RunFolder) -> None:
    """Write evaluation.json from the predictions on the test images."""
    num_classes = len(class_names)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    places = (test.labels, test.probabilities.argmax(1))
    counts.index_put_(places, torch.ones_like(test.labels), accumulate=True)
    bins = reliability_bins(test.probabilities, test.labels)
    record = EvaluationRecord(
        images=len(test.labels),
        accuracy=test.accuracy,
        ece=test.ece,
        class_names=tuple(class_names),
        confusion=tuple(tuple(row) for row in counts.tolist()),
        reliability=tuple(Bin(count=n, confidence=c, accuracy=a) for n, c, a in bins),
    )
    folder.write_json(folder.path / EVALUATION, record.model_dump(mode="json"))


@dataclass(frozen=True)
class Pairs:
    """targets: uint8 [R, C, H, W]; pseudo: the samples made for them, [R, S, C, H, W] in [-1, 1]. Both on the CPU.

    class_names: one per target image; soft_labels: its most probable source classes in descending order.
    """

    targets: Tensor
    class_names: tuple[str, ...]
    soft_labels: tuple[dict[str, float], ...]
    pseudo: Tensor


def make_pairs(task: Task) -> Pairs:
    """Ten training images, spread over the classes, with eight pseudo samples each."""
    data, source, config = task.data.train, task.source, task.config
    chosen = torch.linspace(0, len(data) - 1, min(NUM_TARGETS, len(data))).round().long()
    table = conditioning_table(
        source,
        task.data.asking[0][chosen],
        temperature=config.p_ssl.pcs_temperature,
        top_k=config.p_ssl.pcs_top_k or None,
    )
    rows = torch.arange(len(chosen), device=source.device).repeat_interleave(NUM_SAMPLES)
    synthesis = Synthesis(source, seed=config.seed, purpose="samples")
    pseudo = resized(synthesis.images(len(rows), 0, *table.conditions(rows)), *data.form).cpu()
    names = source.generator.card.class_names
    return Pairs(
        targets=data.images[chosen],
        class_names=tuple(data.class_names[int(data.labels[i])] for i in chosen),
        soft_labels=tuple(top_classes(soft, names, 3) for soft in table.soft_labels.cpu()),
        pseudo=pseudo.unflatten(0, (len(chosen), NUM_SAMPLES)),
    )


def write_pairs(pairs: Pairs, folder: RunFolder) -> None:
    """Write pairs.png, one row per target image with its pseudo samples to the right, and pairs.json, which describes it."""
    rows, samples, _, height, width = pairs.pseudo.shape
    tiles = torch.cat([pairs.targets[:, None], to_uint8(pairs.pseudo)], dim=1)
    if max(height, width) > MAX_SIDE:
        height, width = (max(1, side * MAX_SIDE // max(height, width)) for side in (height, width))
        smaller = F.interpolate(tiles.flatten(0, 1).float(), size=(height, width), mode="area")
        tiles = smaller.round().to(torch.uint8).unflatten(0, (rows, 1 + samples))
    # [R, 1 + S, C, H, W] -> [C, R * H, (1 + S) * W]
    grid = tiles.permute(2, 0, 3, 1, 4).reshape(-1, rows * height, (1 + samples) * width)
    write_atomically(folder.path / PAIRS_PICTURE, encode_png(grid))
    record = PairsRecord(
        tile=(height, width),
        samples=samples,
        targets=tuple(
            Target(class_name=name, soft_label=label)
            for name, label in zip(pairs.class_names, pairs.soft_labels, strict=True)
        ),
    )
    folder.write_json(folder.path / PAIRS, record.model_dump(mode="json"))
