"""`ptgm-fast init`: what it finds in a folder, and a config that a run accepts unchanged."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptgm_fast.config import load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs.init import describe, first_config, look
from ptgm_fast.runs.task import build_task


def write(
    folder: Path, size: tuple[int, int] = (20, 30), *, grey: bool = False, **counts: int
) -> Path:
    """Write `counts` images per class, width x height."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 1 if grey else 3), dtype=np.uint8)
            Image.fromarray(pixels.repeat(3 if grey else 1, 2)).save(folder / name / f"{i}.png")
    return folder


def config_of(folder: Path, tmp_path: Path, pair: Path | None = None, **options: object) -> Path:
    path = tmp_path / "first.toml"
    path.write_text(first_config(look(folder), str(pair or "letters"), **options))  # type: ignore[arg-type]
    return path


def test_what_is_seen(tmp_path: Path) -> None:
    folder = write(tmp_path / "wild leaves", oak=5, elm=9, ash=6)
    Image.new("L", (40, 10)).save(folder / "oak" / "grey.png")
    Image.new("L", (8, 8)).save(folder / "beside.png")
    told: list[tuple[int, int]] = []
    seen = look(folder, lambda done, total: told.append((done, total)))
    assert seen.class_names == ("ash", "elm", "oak")
    assert seen.counts == (6, 9, 6)
    assert (seen.name, seen.side, seen.channels) == ("wild-leaves", 20, 3)
    assert told[-1] == (21, 21)
    assert list(describe(seen)) == [
        f"{folder}: 3 classes, 21 images; 6 to 9 per class, median 6",
        "20x10 to 40x30 pixels (width x height), median of the shorter side 20; 20 in colour, 1 grey",
        "skipped: 1 images outside the class folders",
    ]


@pytest.mark.parametrize(
    ("counts", "labels", "validation", "test"),
    [
        ({"a": 3, "b": 4}, [1, 2], 1, 1),
        ({"a": 25, "b": 11}, [21, 7], 2, 2),
        ({"a": 260, "b": 260}, [260 - 50 - 52, 260 - 50 - 52], 50, 52),
    ],
)
def test_the_split_follows_from_the_smallest_class(
    tmp_path: Path,
    pair: Path,
    counts: dict[str, int],
    labels: list[int],
    validation: int,
    test: int,
) -> None:
    folder = write(tmp_path / "d", (8, 8), **counts)
    # Tracing the generator takes longer than everything else.
    config = load_config(config_of(folder, tmp_path, pair), ["source.optimize=false"])
    assert (config.data.validation_per_class, config.data.test_per_class) == (validation, test)
    data = build_task(config).data
    assert data.train.labels.bincount().tolist() == labels


def test_a_run_takes_the_config_as_it_is(tmp_path: Path, pair: Path) -> None:
    """With the fewest images that are accepted, batches are larger than the labelled set."""
    from ptgm_fast.runs.train import make_stages, run_stages
    from ptgm_fast.training.context import Context

    folder = write(tmp_path / "d", (9, 14), grey=True, a=3, b=3)
    path = config_of(folder, tmp_path, pair)
    few = ["pp.steps=2", "training.steps=2", "pp.batch_size=8", "source.optimize=false"]
    task = build_task(load_config(path, few))
    # Grey images in colour files count as grey.
    assert task.data.train.form == (1, 8, 8)
    results = run_stages(make_stages(task, task.new_network()), Context())
    assert [result.steps for result in results] == [2, 2]


def test_without_changes_it_is_the_default_budget(tmp_path: Path) -> None:
    config = load_config(config_of(write(tmp_path / "d", a=3, b=3), tmp_path))
    default = load_config(None)
    assert config.model_copy(update={"task": default.task, "data": default.data}) == default


@pytest.mark.parametrize(
    ("size", "generated", "expected"),
    [((10, 10), 28, 28), ((45, 41), 28, 40), ((500, 375), 28, 56), ((500, 375), 128, 256)],
)
def test_the_images_side(size: tuple[int, int], generated: int, expected: int) -> None:
    from ptgm_fast.runs.init import _image_size, _network

    assert _image_size(min(size), generated) == expected
    assert _network(expected) == ("timm:resnet18" if expected > 64 else "ptgm:resnet-small")


def test_train_and_test_folders(tmp_path: Path, pair: Path) -> None:
    write(tmp_path / "d" / "train", a=5, b=7)
    write(tmp_path / "d" / "test", a=2, b=1)
    seen = look(tmp_path / "d")
    assert (seen.name, seen.counts, seen.test_counts) == ("d", (5, 7), (2, 1))
    path = config_of(tmp_path / "d", tmp_path, pair)
    data = build_task(load_config(path, ["source.optimize=false"])).data
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 2, 3)
    write(tmp_path / "d" / "test", c=1)
    with pytest.raises(UserError, match="different classes: c in only one"):
        look(tmp_path / "d")


def test_a_generator_without_a_classifier_and_a_classifier_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "d", a=3, b=3)
    own = config_of(folder, tmp_path, classifier=("timm:resnet18.a1_in1k", 'we"ights.safetensors'))
    classifier = tomllib.loads(own.read_text())["source"]["classifier"]
    assert classifier == {"network": "timm:resnet18.a1_in1k", "weights": 'we"ights.safetensors'}
    assert load_config(own).source.classifier.image_size == 224
    monkeypatch.setattr("ptgm_fast.generators.has_classifier", lambda uri: False)
    assert load_config(config_of(folder, tmp_path)).source.classifier.network == "none"


def empty(folder: Path) -> None:
    folder.mkdir()


def no_classes(folder: Path) -> None:
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")


def damaged(folder: Path) -> None:
    write(folder, a=4, b=4)
    for name in ("1.png", "2.png"):
        (folder / "a" / name).write_bytes((folder / "a" / name).read_bytes()[:60])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist"),
        (empty, "no class folders; expected"),
        (no_classes, "no class folders; expected"),
        (
            lambda folder: write(folder, a=4),
            "one class folder, 'a'; a classifier needs at least two",
        ),
        (lambda folder: write(folder, a=4, b=0), "contains no images"),
        (
            lambda folder: write(folder, a=1, b=5),
            "class 'a' has 1 image, but a class needs at least 3",
        ),
        (lambda folder: write(folder, a=4, b=2), "class 'b' has 2 images"),
        (damaged, r"(?s)Fix these.*a/1\.png.*a/2\.png"),
    ],
)
def test_what_cannot_begin(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "d")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        first_config(look(tmp_path / "d"))
