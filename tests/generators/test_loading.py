"""Loading a pair: what is read, what is checked, and the message for each error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators import ConditionalBatchNormGenerator
from ptgm_fast.models import save_weights, sha256


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    (folder / "card.json").write_text(json.dumps(card))


def test_a_pair_comes_back_frozen_and_equal(
    pair_folder: Path, tiny: ConditionalBatchNormGenerator
) -> None:
    loaded = generators.load(str(pair_folder))
    latents, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    for ours, theirs in zip(loaded.parameters(), tiny.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(
        loaded.generate(latents, labels), tiny.generate(latents, labels), atol=1e-5, rtol=1e-5
    )
    classifier = generators.load_classifier(str(pair_folder))
    assert classifier(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    for module in (loaded, classifier):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_card_round_trip(pair_folder: Path) -> None:
    card = generators.load_card(str(pair_folder))
    generators.write_card(card, pair_folder)
    assert generators.read_card(pair_folder) == card


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(pair_folder: Path, dtype: torch.dtype) -> None:
    loaded = generators.load(str(pair_folder), dtype=dtype)
    assert loaded.generate(torch.zeros(1, 3, dtype=dtype), torch.tensor([0])).dtype == dtype


def test_unknown_uri_lists_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither bundled nor an existing folder(.|\n)*letters"):
        generators.load("leters")
    with pytest.raises(UserError, match=r"has no card\.json"):
        generators.load(str(tmp_path))


@pytest.mark.parametrize("name", ["generator.safetensors", "classifier.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_weights(pair_folder: Path, name: str, damage: str) -> None:
    path = pair_folder / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-10])
    else:
        data[-1] ^= 1
        path.write_bytes(data)
    load = generators.load if name.startswith("generator") else generators.load_classifier
    expected = (
        "weights that card.json names: file .* does not exist"
        if damage == "missing"
        else "is not the expected file"
    )
    with pytest.raises(UserError, match=expected):
        load(str(pair_folder))


def test_weights_of_another_architecture_name_the_tensors(
    pair_folder: Path, make_card: Any
) -> None:
    other = ConditionalBatchNormGenerator(make_card(widths=(6, 4)))
    path = pair_folder / "generator.safetensors"
    save_weights(other, path)
    files = json.loads((pair_folder / "card.json").read_text())["files"]
    files["generator.safetensors"] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    edit_card(pair_folder, files=files)
    with pytest.raises(UserError, match=r"missing: blocks\.0\.residual_conv"):
        generators.load(str(pair_folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format"),
        ({"channels": 2}, "channels"),
        ({"num_classes": 6}, "class_names has 5 entries for num_classes = 6"),
        ({"surprise": 1}, "surprise"),
        ({"image_size": 10}, "not a multiple of 4"),
        ({"files": {}}, "has no sha256"),
    ],
    ids=["format", "channels", "classes", "unknown-key", "image-size", "no-sha256"],
)
def test_a_card_that_cannot_be_used(
    pair_folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_card(pair_folder, **changes)
    with pytest.raises(UserError, match=message):
        generators.load(str(pair_folder))


def test_a_damaged_card(pair_folder: Path) -> None:
    (pair_folder / "card.json").write_text('{"format": 1,')
    with pytest.raises(UserError, match="is damaged"):
        generators.load_card(str(pair_folder))


def test_a_pair_without_classifier(pair_folder: Path) -> None:
    edit_card(pair_folder, classifier=None)
    with pytest.raises(UserError, match="comes without a source classifier"):
        generators.load_classifier(str(pair_folder))
