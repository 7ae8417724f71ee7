"""The sample sheet: a picture of what the generator draws, one column a class."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ptgm_fast.models.weights import write_atomically

ROWS = 10
COLUMNS = 26


def save_sheet(samples: Tensor, path: Path) -> None:
    """Write a PNG of samples float [K, M, C, H, W] in [-1, 1]: up to 26 classes side by side, 10 samples down each.

    Further classes follow in further bands below. Raises OSError on a failed write.
    """
    from PIL import Image

    num_classes, per_class, channels, height, width = samples.shape
    rows = min(ROWS, per_class)
    columns = min(COLUMNS, num_classes)
    bands = -(-num_classes // columns)
    cells = torch.full((bands * columns, rows, channels, height, width), -1.0)
    cells[:num_classes] = samples[:, :rows].cpu().float()
    grid = cells.view(bands, columns, rows, channels, height, width).permute(0, 2, 4, 1, 5, 3)
    pixels = grid.reshape(bands * rows * height, columns * width, channels)
    array = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze(2) if channels == 1 else array).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
