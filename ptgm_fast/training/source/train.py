"""One source pair from one labelled image set: classifier, generator, judge, figures, card."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ptgm_fast.errors import UserError
from ptgm_fast.generators import CARD_FILE, FileCard, GeneratorCard, write_card
from ptgm_fast.generators.card import ClassifierCard
from ptgm_fast.models import save_weights, sha256
from ptgm_fast.training.source.data import load_split
from ptgm_fast.training.source.measures import class_groups, measure
from ptgm_fast.training.source.networks import Report, train_classifier, train_generator
from ptgm_fast.training.source.options import SourceOptions
from ptgm_fast.training.source.sheet import save_sheet

GENERATOR_FILE = "generator.safetensors"
CLASSIFIER_FILE = "classifier.safetensors"
SHEET_FILE = "samples.png"


def _silent(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
    return None


def train_source(
    options: SourceOptions,
    out_dir: Path | str,
    *,
    report: Report = _silent,
    on_notice: Callable[[str], None] = lambda message: None,
    device: torch.device | str = "cpu",
) -> GeneratorCard:
    """Train a source pair and write it to `out_dir`; `ptgm_fast.generators.load(out_dir)` reads it.

    Writes classifier.safetensors, generator.safetensors, samples.png and, last, card.json: a folder with a card
    is complete. Every random number is a function of (seed, purpose, index), so the same options on the
    same machine, number of threads and versions give the same weights, bit for bit.
    report(stage, step, steps, metrics): stage is "classifier", "generator" or "judge". on_notice: see `data.load`.

    Raises UserError when `out_dir` already holds a pair, for data that cannot be used, and for a loss that is
    not finite; what earlier stages wrote stays. OSError on a failed write.
    """
    out = Path(out_dir)
    existing = [
        name for name in (CARD_FILE, GENERATOR_FILE, CLASSIFIER_FILE) if (out / name).exists()
    ]
    if existing:
        raise UserError(
            f"{str(out)!r} already holds {', '.join(existing)}; choose another folder or remove them"
        )
    target = torch.device(device)
    training, holdout = load_split(options, on_notice)
    # Check `equivalent` now rather than after minutes of training.
    class_groups(training.class_names, options.equivalent)
    card = _blank_card(options, training.class_names)
    out.mkdir(parents=True, exist_ok=True)

    seconds: dict[str, float] = {}
    started = time.perf_counter()
    classifier = train_classifier(
        "classifier", options.classifier, training, options, report, target
    )
    save_weights(classifier, out / CLASSIFIER_FILE)
    seconds["classifier"], started = _lap(started)
    generator = train_generator(
        card, classifier, training, options, out / GENERATOR_FILE, report, target
    )
    seconds["generator"], started = _lap(started)
    judge = train_classifier("judge", options.judge, training, options, report, target)
    seconds["judge"], started = _lap(started)

    figures, samples = measure(generator, classifier, judge, training, holdout, options, target)
    save_sheet(samples, out / SHEET_FILE)
    finished = card.model_copy(
        update={
            "files": {name: _file_card(out / name) for name in (GENERATOR_FILE, CLASSIFIER_FILE)},
            "figures": figures,
            "training": {
                "options": options.model_dump(mode="json"),
                "num_images": len(training),
                "seconds": seconds,
                "device": target.type,
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            },
        }
    )
    write_card(finished, out)
    return finished


def _blank_card(options: SourceOptions, class_names: tuple[str, ...]) -> GeneratorCard:
    sizes: dict[str, Any] = options.generator.model_dump(
        include={"widths", "latent_dim", "embedding_dim"}
    )
    return GeneratorCard(
        name=options.name,
        num_classes=len(class_names),
        class_names=class_names,
        image_size=options.image_size,
        channels=options.channels,
        generator_file=GENERATOR_FILE,
        classifier=ClassifierCard(
            architecture=options.classifier.architecture, file=CLASSIFIER_FILE
        ),
        data=options.description or options.data,
        licences=options.licences,
        **sizes,
    )


def _file_card(path: Path) -> FileCard:
    return FileCard(sha256=sha256(path), bytes=path.stat().st_size)


def _lap(started: float) -> tuple[float, float]:
    now = time.perf_counter()
    return round(now - started, 1), now
