"""A tiny pair on disk, made without training: its weights are random, its card is correct."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptgm_fast.generators import ConditionalBatchNormGenerator, FileCard, GeneratorCard, write_card
from ptgm_fast.generators.card import ClassifierCard
from ptgm_fast.models import build, save_weights, sha256


@pytest.fixture
def make_card() -> Callable[..., GeneratorCard]:
    def make(**changes: Any) -> GeneratorCard:
        fields: dict[str, Any] = {
            "name": "tiny",
            "num_classes": 5,
            "class_names": tuple("abcde"),
            "latent_dim": 3,
            "embedding_dim": 4,
            "image_size": 8,
            "channels": 1,
            "widths": (6, 5, 4),
            "data": "nothing",
        }
        return GeneratorCard(**{**fields, **changes})

    return make


@pytest.fixture
def tiny(make_card: Callable[..., GeneratorCard]) -> ConditionalBatchNormGenerator:
    torch.manual_seed(0)
    generator = ConditionalBatchNormGenerator(make_card())
    # With scales of 0.02 all conditions would be nearly alike.
    for name, parameter in generator.named_parameters():
        if "scale_shift.weight" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return generator.eval().requires_grad_(False)


@pytest.fixture
def pair_folder(tmp_path: Path, tiny: ConditionalBatchNormGenerator) -> Path:
    folder = tmp_path / "pair"
    folder.mkdir()
    classifier = build("ptgm:cnn-small", num_classes=5, channels=1, image_size=8)
    files = {"generator.safetensors": tiny, "classifier.safetensors": classifier}
    for name, module in files.items():
        save_weights(module, folder / name)
    described = {
        n: FileCard(sha256=sha256(folder / n), bytes=(folder / n).stat().st_size) for n in files
    }
    card = tiny.card.model_copy(
        update={"files": described, "classifier": ClassifierCard(architecture="ptgm:cnn-small")}
    )
    write_card(card, folder)
    return folder
