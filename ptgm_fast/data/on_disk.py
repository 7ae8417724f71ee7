"""Images that stay on disk: rows of a file, read on access."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor


class OnDisk:
    """Images uint8 [N, C, H, W] in a file: a selection of its rows, in any order.

    Can be used like a tensor of images: `images[index]`, `split` and `to` return what the tensor would. The file is mapped
    separately for each read, so that touched pages do not count towards the process's memory.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self,
        file: IO[bytes],
        shape: tuple[int, ...],
        *,
        offset: int,
        memory_limit: float,
        rows: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """shape: of all images in the file, starting at byte `offset`. memory_limit: maximum bytes of a `subset` in memory."""
        self._file, self._whole, self._offset = file, tuple(shape), offset
        self._limit = memory_limit
        self._rows = torch.arange(shape[0]) if rows is None else rows
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._whole[1:]))

    @property
    def nbytes(self) -> int:
        return self.shape.numel()

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The images at `index`, int64 [M] or a slice, on the device."""
        rows = self._rows[index.cpu() if isinstance(index, Tensor) else index]
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            images = np.frombuffer(mapped, np.uint8, offset=self._offset).reshape(self._whole)
            read = np.take(images, rows.numpy(), axis=0)
            # The map cannot be closed while an array still refers to it.
            del images
        return torch.from_numpy(read).to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches of `size` images, in order."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(self, device: torch.device | str) -> OnDisk:
        """The same images; reads will return tensors on `device`."""
        return self._with(self._rows, device)

    def subset(self, indices: Tensor) -> Tensor | OnDisk:
        """The images at `indices`, int64 [M]: in memory if the limit allows it."""
        chosen = self._with(self._rows[indices], self.device)
        return chosen[:] if chosen.nbytes <= self._limit else chosen

    def _with(self, rows: Tensor, device: torch.device | str) -> OnDisk:
        return OnDisk(
            self._file,
            self._whole,
            offset=self._offset,
            memory_limit=self._limit,
            rows=rows,
            device=device,
        )
