"""Labelled pseudo images on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptgm_fast import data
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.synthesize import synthesize

Tiny = Callable[..., RunConfig]


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_uniform_labels_make_an_image_folder(tiny: Tiny, tmp_path: Path) -> None:
    summary = synthesize(tiny(), 90, tmp_path / "s")
    records = manifest(tmp_path / "s")
    assert [r["index"] for r in records] == list(range(90))
    assert summary["count"] == 90
    assert {r["label"] for r in records} == set(range(6))
    for record in records:
        with Image.open(tmp_path / "s" / record["file"]) as image:
            assert image.size == (8, 8)
        assert record["file"].startswith(f"{record['label']}_{record['class']}/")
    loaded = data.load(f"folder:{tmp_path / 's'}")
    assert loaded.images.shape == (90, 1, 8, 8)
    assert loaded.labels.bincount().tolist() == np.bincount([r["label"] for r in records]).tolist()


def test_more_images_begin_with_the_same_ones(tiny: Tiny, tmp_path: Path) -> None:
    for name, count in (("few", 20), ("many", 300), ("again", 20)):
        synthesize(tiny(), count, tmp_path / name)
    first = {
        r["file"]: (tmp_path / "few" / r["file"]).read_bytes() for r in manifest(tmp_path / "few")
    }
    for file, content in first.items():
        assert (tmp_path / "many" / file).read_bytes() == content
    sums = [
        json.loads((tmp_path / n / "summary.json").read_text())["pixels_sha256"]
        for n in ("few", "again")
    ]
    assert sums[0] == sums[1]


def test_conditioned_on_target_images(tiny: Tiny, tmp_path: Path) -> None:
    synthesize(tiny(), 30, tmp_path / "s", conditioned=True)
    records = manifest(tmp_path / "s")
    assert {r["class"] for r in records} == {"0", "1", "2"}
    # 15 labelled images, each visited twice in 30 samples.
    assert sorted(r["target_index"] for r in records) == sorted(list(range(15)) * 2)
    for record in records:
        assert list(record["soft_label"].values()) == sorted(
            record["soft_label"].values(), reverse=True
        )
        assert set(record["soft_label"]) <= set("abcdef")


def test_an_existing_folder_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        synthesize(tiny(), 3, tmp_path / "s")
    with pytest.raises(UserError, match="at least 1"):
        synthesize(tiny(), 0, tmp_path / "t")
