"""Runs over image files: from the disk or from memory, with a cache or without, decoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from on_disk import same, trained
from ptgm_fast.config import RunConfig
from ptgm_fast.data import OnDisk
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import Asked, compare
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage
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


def test_a_comparison_decodes_once_for_all_seeds(
    tiny: Tiny, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []

    def read(file: Path, *arguments: object) -> object:
        decoded.append(file)
        return read_image(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ptgm_fast.data.folder.read_image", read)
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
