"""The bundled pair does what its card says."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import pytest
import torch

from ptgm_fast import generators, kernels
from ptgm_fast.training.source import SourceOptions
from ptgm_fast.training.source.measures import (
    accuracy,
    class_groups,
    diversity,
    predict,
    prior_samples,
)

FOLDER = Path(generators.folder_of("letters"))
CPU = torch.device("cpu")


def test_card() -> None:
    card = generators.load_card("letters")
    assert card.num_classes == 52
    assert "".join(card.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert (card.image_size, card.channels) == (28, 1)
    assert card.licences
    assert card.figures["obedience_by_judge"]["equivalent"] >= 0.9
    weights = [FOLDER / name for name in card.files]
    assert sum(path.stat().st_size for path in weights) < 3_000_000
    assert [path.stat().st_size for path in weights] == [
        card.files[path.name].bytes for path in weights
    ]


def test_the_configuration_is_the_one_it_was_made_with() -> None:
    options = SourceOptions.model_validate(tomllib.loads((FOLDER / "source.toml").read_text()))
    assert generators.load_card("letters").training["options"] == options.model_dump(mode="json")


def test_every_licence_of_the_fonts_is_on_the_card() -> None:
    with (FOLDER / "fonts.csv").open(newline="") as file:
        used = [row for row in csv.DictReader(file) if row["letters"] == "used"]
    assert len(used) * 52 == generators.load_card("letters").training["num_images"] + 52 * 20
    assert {row["licence"] for row in used} == set(generators.load_card("letters").licences)


def test_samples_obey_their_label_and_vary() -> None:
    generator, classifier = generators.load("letters"), generators.load_classifier("letters")
    card = generator.card
    images, labels = prior_samples(generator, 8, seed=123, device=CPU)
    found = accuracy(
        predict(classifier, images), labels, class_groups(card.class_names, "ignore-case")
    )
    assert found["equivalent"] >= 0.9
    # A single image per class would give 0; a quarter of the distance of two random letters is far above any rounding.
    between = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    assert diversity(images.view(52, 8, -1), between.view(52, 8, -1)) > 0.25


@pytest.mark.parametrize("kind", ["soft-label", "embedding"])
def test_mixed_conditions_lie_between_their_classes(kind: str) -> None:
    generator, classifier = generators.load("letters"), generators.load_classifier("letters")
    names = generator.card.class_names
    soft = torch.zeros(64, 52)
    soft[:, names.index("O")] = 0.5
    soft[:, names.index("T")] = 0.5
    condition = soft if kind == "soft-label" else soft @ generator.class_table
    latents = kernels.latents(64, generator.card.latent_dim, seed=5, start=0)
    images = generator.generate(latents, condition)
    assert images.shape == (64, 1, 28, 28)
    # A mixture is neither class: the classifier is less certain than on pure classes.
    pure = generator.generate(latents, torch.full((64,), names.index("T")))
    confidence = [torch.softmax(classifier(x), 1).amax(1).mean().item() for x in (images, pure)]
    assert confidence[0] < confidence[1]
