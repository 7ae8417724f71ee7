"""The sample sheet: a picture of generated samples, one column per class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ptgm_fast.data.images import encode_png, to_uint8
from ptgm_fast.models.weights import write_atomically

ROWS = 10
COLUMNS = 26


def save_sheet(samples: Tensor, path: Path) -> None:
    """Write a PNG of samples float [K, M, C, H, W] in [-1, 1]: up to 26 classes side by side, 10 samples in each column.

    Further classes follow in bands below. Raises OSError on a failed write.
    """
    num_classes, per_class, channels, height, width = samples.shape
    rows = min(ROWS, per_class)
    columns = min(COLUMNS, num_classes)
    bands = -(-num_classes // columns)
    cells = torch.zeros((bands * columns, rows, channels, height, width), dtype=torch.uint8)
    cells[:num_classes] = to_uint8(samples[:, :rows]).cpu()
    # [bands * columns, rows, C, H, W] -> [C, bands * rows * H, columns * W]
    grid = cells.unflatten(0, (bands, columns)).permute(3, 0, 2, 4, 1, 5)
    picture = grid.reshape(channels, bands * rows * height, columns * width)
    write_atomically(path, encode_png(picture))
