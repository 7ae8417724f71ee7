"""Tiny labelled images: bars and crosses that a network learns in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptgm_fast.training.source import SourceOptions


def shapes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images of each of three classes, uint8 [3 * count, 12, 12]: horizontal, vertical bar, square."""
    images = np.zeros((3, count, 12, 12), np.uint8)
    for i in range(count):
        offset = 4 + i % 4
        images[0, i, offset : offset + 2, 2:10] = 255
        images[1, i, 2:10, offset : offset + 2] = 255
        images[2, i, offset - 1 : offset + 3, 3:9] = 200
    return images.reshape(-1, 12, 12), np.repeat(np.arange(3), count)


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    x, y = shapes(12)
    path = tmp_path / "shapes.npz"
    np.savez(path, x=x, y=y, class_names=np.array(["bar", "pole", "Bar"]))
    return path


@pytest.fixture
def make_options(data_file: Path) -> Callable[..., SourceOptions]:
    def make(**changes: Any) -> SourceOptions:
        fields: dict[str, Any] = {
            "data": f"npz:{data_file}",
            "image_size": 12,
            "holdout_per_class": 3,
            "samples_per_class": 4,
            "classifier": {"steps": 6, "batch_size": 16},
            "judge": {"architecture": "ptgm:resnet-small", "steps": 6, "batch_size": 16},
            "generator": {
                "widths": [8, 8, 6],
                "latent_dim": 4,
                "embedding_dim": 5,
                "encoder_width": 6,
                "steps": 6,
                "batch_size": 8,
                "checkpoint_every": 2,
            },
        }
        for key, value in changes.items():
            fields[key] = (
                {**fields[key], **value} if isinstance(value, dict) and key in fields else value
            )
        return SourceOptions.model_validate(fields)

    return make
