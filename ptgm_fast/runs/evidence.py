"""What a report shows beside the curves, kept in the run folder: test predictions counted, pseudo samples beside their targets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ptgm_fast.models.weights import write_atomically
from ptgm_fast.runs.formats import top_classes
from ptgm_fast.sampling import Synthesis, conditioning_table, to_uint8
from ptgm_fast.training.evaluation import Evaluation, reliability_bins

if TYPE_CHECKING:
    from ptgm_fast.runs.folder import RunFolder
    from ptgm_fast.runs.task import Task

EVALUATION, PAIRS, PAIRS_PICTURE = "evaluation.json", "pairs.json", "pairs.png"
NUM_TARGETS, NUM_SAMPLES = 10, 8
# A picture larger than this brings nothing to a page.
MAX_SIDE = 128


class Record(BaseModel):
    """What one of the files holds; an unknown key or another version is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1


class Bin(BaseModel):
    count: int
    confidence: float
    accuracy: float


class EvaluationRecord(Record):
    """evaluation.json. confusion: counts [true][predicted] on the test images; reliability: equal bins of confidence."""

    images: int
    accuracy: float
    ece: float
    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[Bin, ...]


class Target(BaseModel):
    class_name: str
    soft_label: dict[str, float]


class PairsRecord(Record):
    """pairs.json: what the tiles of pairs.png are. tile: height and width in pixels; samples: pseudo samples a row."""

    tile: tuple[int, int]
    samples: int
    targets: tuple[Target, ...]


def write_evaluation(test: Evaluation, class_names: Sequence[str], folder: RunFolder) -> None:
    """evaluation.json of the test images' predictions."""
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
    """targets uint8 [R, C, H, W] and the pseudo samples made for them, [R, S, C, H, W] in [-1, 1], on the CPU.

    class_names: of each target image; soft_labels: its most probable source classes, the first first.
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
        data.images[chosen],
        temperature=config.p_ssl.pcs_temperature,
        top_k=config.p_ssl.pcs_top_k or None,
    )
    rows = torch.arange(len(chosen), device=source.device).repeat_interleave(NUM_SAMPLES)
    synthesis = Synthesis(source, seed=config.seed, purpose="samples")
    pseudo = synthesis.images(len(rows), 0, *table.conditions(rows)).cpu()
    names = source.generator.card.class_names
    return Pairs(
        targets=data.images[chosen],
        class_names=tuple(data.class_names[int(data.labels[i])] for i in chosen),
        soft_labels=tuple(top_classes(soft, names, 3) for soft in table.soft_labels.cpu()),
        pseudo=pseudo.unflatten(0, (len(chosen), NUM_SAMPLES)),
    )


def write_pairs(pairs: Pairs, folder: RunFolder) -> None:
    """pairs.png: a grid of tiles, one row a target image, its pseudo samples to the right; pairs.json says what they are."""
    rows, samples, _, height, width = pairs.pseudo.shape
    tiles = torch.cat([pairs.targets[:, None], to_uint8(pairs.pseudo)], dim=1)
    if max(height, width) > MAX_SIDE:
        height, width = (max(1, side * MAX_SIDE // max(height, width)) for side in (height, width))
        smaller = F.interpolate(tiles.flatten(0, 1).float(), size=(height, width), mode="area")
        tiles = smaller.round().to(torch.uint8).unflatten(0, (rows, 1 + samples))
    # [R, 1 + S, C, H, W] -> [R * H, (1 + S) * W, C]
    grid = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, (1 + samples) * width, -1)
    _write_png(grid, folder.path / PAIRS_PICTURE)
    record = PairsRecord(
        tile=(height, width),
        samples=samples,
        targets=tuple(
            Target(class_name=name, soft_label=label)
            for name, label in zip(pairs.class_names, pairs.soft_labels, strict=True)
        ),
    )
    folder.write_json(folder.path / PAIRS, record.model_dump(mode="json"))


def _write_png(pixels: Tensor, path: Path) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
