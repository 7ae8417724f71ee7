"""Runs on image files: from disk or memory, with or without a cache, decoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from on_disk import same, trained
from ptgm_fast import data
from ptgm_fast.config import RunConfig
from ptgm_fast.data import OnDisk
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import Asked, against_baselines, compare
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage, train
from ptgm_fast.sampling import conditioning_table
from ptgm_fast.training.context import Context

Tiny = Callable[..., RunConfig]


@pytest.fixture
def folder(blobs: Path, tmp_path: Path) -> Path:
    """The tiny task's images as files."""
    with np.load(blobs) as archive:
        x, y = archive["x"], archive["y"]
    root = tmp_path / "folder"
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(root / str(label) / f"{i:05d}.png")
    return root


def test_training_from_the_disk_is_training_from_memory(
    tiny: Tiny, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (f"data.images=folder:{folder}", "p_ssl.method=source-head")
    disk = tiny(*settings, "data.memory_limit=0")
    assert isinstance(build_task(disk).data.train.images, OnDisk)
    memory = trained(tiny(*settings))
    assert same(memory, trained(disk))
    assert same(memory, trained(tiny(*settings, f"data.cache={tmp_path / 'cache'}")))


def test_a_captured_step_needs_its_images_in_memory(
    tiny: Tiny, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(f"data.images=folder:{folder}", "data.memory_limit=0", "engine.capture=true")
    task = build_task(config)
    with pytest.raises(UserError, match=r"engine\.capture needs .* data\.memory_limit"):
        make_stage("supervised", task, task.new_network())


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Records the image files that are decoded from now on."""
    files: list[Path] = []

    def read(file: Path, *arguments: object) -> object:
        files.append(file)
        return read_image(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ptgm_fast.data.folder.read_image", read)
    return files


def test_a_comparison_decodes_once_for_all_seeds(
    tiny: Tiny, folder: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    told: list[tuple[int, int]] = []
    compare(
        tiny(f"data.images=folder:{folder}"),
        Asked(("scratch", "pp"), (0, 1, 2)),
        tmp_path / "compare",
        context=Context(on_images=lambda done, total: told.append((done, total))),
    )
    number = len(list(folder.rglob("*.png")))
    assert len(decoded) == len(set(decoded)) == number
    assert told[-1] == (number, number)


def test_a_run_and_its_baselines_decode_once(
    tiny: Tiny, folder: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    config, loaded = tiny(f"data.images=folder:{folder}", "training.steps=2", "pp.steps=2"), []
    train(config, tmp_path / "run", on_task=loaded.append)
    report = against_baselines(config, tmp_path / "run", task=loaded[0])
    assert list(report["methods"]) == ["scratch", "soft-target", "this run"]
    assert len(decoded) == len(list(folder.rglob("*.png")))


@pytest.mark.parametrize("cached", [False, True])
def test_only_images_with_soft_labels_are_decoded_for_the_classifier(
    tiny: Tiny, folder: Path, tmp_path: Path, decoded: list[Path], cached: bool
) -> None:
    """The target sees 12x12, the classifier 8x8: 15 of 90 images are labelled, and 90 come from the other folder."""
    keep = [f"data.cache={tmp_path / 'cache'}"] * cached
    config = tiny(f"data.images=folder:{folder}", "data.image_size=12", *keep)
    task = build_task(config)
    number = len(decoded)
    assert number == 90
    asking = task.data.asking[0]
    again = decoded[number:]
    assert len(again) == len(set(again)) == len(asking) == len(task.data.train) == 15
    # In the order of the labelled images, with or without threads.
    train = task.data.train
    expected = data.load(f"folder:{folder}", channels=1, image_size=8).images
    own = task.read.images.images
    rows = [int((own[:] == image).flatten(1).all(1).nonzero()) for image in train.images[:]]
    assert asking.equal(expected[torch.tensor(rows)])
    del decoded[:]
    assert build_task(config).data.asking[0].equal(asking)
    assert len(decoded) == (0 if cached else 105)
    # Another seed has other labelled images; if they are most of the set, the whole set is read, once.
    most = config.model_copy(
        update={"data": config.data.model_copy(update={"labels_per_class": 15})}
    )
    first = build_task(most)
    second = build_task(most.model_copy(update={"seed": 1}), first)
    del decoded[:]
    assert not first.data.asking[0].equal(second.data.asking[0])
    assert len(decoded) == len(set(decoded)) == 90


def test_unlabelled_images_at_the_classifiers_size(
    tiny: Tiny, folder: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    """Soft labels of both sets are computed from their files at 8x8, not from what the target network sees."""
    rng = np.random.default_rng(1)
    (tmp_path / "more").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8)).save(
            tmp_path / "more" / f"{i}.png"
        )
    more = f"folder:{tmp_path / 'more'}"
    config = tiny(f"data.images=folder:{folder}", f"data.unlabelled={more}", "data.image_size=12")
    task = build_task(config)
    assert task.data.unlabelled is not None
    assert task.data.unlabelled.form == (1, 12, 12)
    del decoded[:]
    labelled, further = task.data.asking
    assert len(decoded) == 15 + 5
    expected = data.load(more, channels=1, image_size=8, labelled=False).images
    assert further.equal(expected)
    stage = make_stage("p-ssl", task, task.new_network())
    stage.prepare()
    together = torch.cat([labelled, expected])  # type: ignore[list-item]
    table = conditioning_table(task.source, together, temperature=config.p_ssl.pcs_temperature)
    assert torch.allclose(stage.table.soft_labels, table.soft_labels, atol=1e-6)  # type: ignore[attr-defined]
    shrunk = conditioning_table(task.source, task.data.unlabelled.images).soft_labels
    assert not torch.allclose(table.soft_labels[15:], shrunk, atol=1e-4)
    # The training images still have the target network's size.
    assert stage.make_batch(0).weak.shape[1:] == (1, 12, 12)
