"""Storage for a pool's images: tensors on a device, or shards in a folder."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.errors import UserError
from ptgm_fast.sampling.parts import Parts
from ptgm_fast.sampling.recipe import BLOCK


class Store(Protocol):
    """Storage for a pool's images."""

    device: torch.device

    def begin(self) -> set[int]:
        """Allocate the store, or open an existing one. Returns the blocks not yet put, here or by another process."""

    def before(self, block: int) -> list[int]:
        """The blocks that must be put before this one."""

    def put(self, block: int, images: Tensor, labels: Tensor) -> None: ...

    def finish(self) -> None:
        """Called once no block is missing."""

    def read(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, C, H, W] and labels int64 [N] of `numbers`, int64 [N], on the device."""


class MemoryStore:
    """Tensors on a device."""

    def __init__(self, count: int, shape: tuple[int, ...], device: torch.device) -> None:
        self._count, self._shape, self.device = count, shape, device
        self._missing = set(range(-(-count // BLOCK)))

    def begin(self) -> set[int]:
        if not hasattr(self, "_images"):
            shape = (self._count, *self._shape)
            self._images = torch.empty(shape, dtype=torch.uint8, device=self.device)
            self._labels = torch.empty(self._count, dtype=torch.int64, device=self.device)
        return set(self._missing)

    def before(self, block: int) -> list[int]:
        return []

    def put(self, block: int, images: Tensor, labels: Tensor) -> None:
        place = slice(block * BLOCK, min((block + 1) * BLOCK, self._count))
        number = place.stop - place.start
        self._images[place], self._labels[place] = images[:number], labels[:number]
        self._missing.discard(block)

    def finish(self) -> None:
        pass

    def read(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        numbers = numbers.to(self.device)
        return self._images[numbers], self._labels[numbers]


class FolderStore:
    """Memory-mapped shards in a folder: images-00000.npy uint8 [n, C, H, W] and labels-00000.npy int64 [n]."""

    def __init__(
        self,
        parts: Parts,
        shape: tuple[int, ...],
        device: torch.device | str,
        extra: Callable[[], Mapping[str, np.ndarray]] = dict,
    ) -> None:
        """extra: arrays written along with the first shard, by file name."""
        self._parts, self._shape, self.device = parts, shape, torch.device(device)
        self._extra = extra
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # The shard in progress, block by block.
        self._shard, self._blocks = -1, dict[int, tuple[Tensor, Tensor]]()

    @property
    def _per_shard(self) -> int:
        return self._parts.size // BLOCK

    @property
    def num_shards(self) -> int:
        return self._parts.number

    def blocks_of(self, shard: int) -> range:
        first = shard * self._per_shard
        return range(first, first + -(-len(self._parts.range(shard)) // BLOCK))

    def begin(self) -> set[int]:
        self._parts.begin()
        return {
            block
            for shard in range(self._parts.number)
            if self._parts.record(shard) is None or self._misshapen(shard)
            for block in self.blocks_of(shard)
            if block not in self._blocks
        }

    def before(self, block: int) -> list[int]:
        # One shard at a time is held in memory.
        if self._shard in (-1, block // self._per_shard):
            return []
        return [b for b in self.blocks_of(self._shard) if b not in self._blocks]

    def put(self, block: int, images: Tensor, labels: Tensor) -> None:
        self._shard = block // self._per_shard
        self._blocks[block] = images.cpu(), labels.cpu()
        blocks = self.blocks_of(self._shard)
        if len(self._blocks) < len(blocks):
            return
        number = len(self._parts.range(self._shard))
        whole = [torch.cat([self._blocks[b][i] for b in blocks])[:number].numpy() for i in (0, 1)]
        files = dict(zip(file_names(self._shard), whole, strict=True))
        if self._shard == 0:
            files |= self._extra()
        self._parts.write({n: npy_bytes(array) for n, array in files.items()}, self._shard)
        self._shard, self._blocks = -1, {}

    def read(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        images = np.empty((len(numbers), *self._shape), np.uint8)
        labels = np.empty(len(numbers), np.int64)
        for place, number in enumerate(numbers.tolist()):
            shard, offset = divmod(number, self._parts.size)
            if shard == self._shard:
                block, within = divmod(number, BLOCK)
                x, y = self._blocks[block]
                images[place], labels[place] = x[within].numpy(), int(y[within])
                continue
            maps = self._maps.get(shard) or self._map(shard)
            images[place], labels[place] = maps[0][offset], maps[1][offset]
        return torch.from_numpy(images).to(self.device), torch.from_numpy(labels).to(self.device)

    def _map(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        number = len(self._parts.range(shard))
        for name, shape, dtype in zip(
            file_names(shard),
            ((number, *self._shape), (number,)),
            (np.uint8, np.int64),
            strict=True,
        ):
            file = self._parts.path / name
            array = _load(file)
            if array.shape != shape or array.dtype != dtype:
                raise UserError(
                    f"shard {str(file)!r} holds {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {list(shape)}"
                )
            # Plain arrays: the overhead of np.memmap is larger than reading an image.
            found.append(np.asarray(array))
        self._maps[shard] = found[0], found[1]
        return self._maps[shard]

    def load(self, name: str) -> np.ndarray:
        """An array of the folder. Raises UserError if it cannot be read."""
        return _load(self._parts.path / name)

    def check(self) -> None:
        """Raise UserError unless every shard exists and has the right size; contents are not read."""
        wrong = [n for shard in range(self._parts.number) for n in self._misshapen(shard)]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"pool {str(self._parts.path)!r}: {', '.join(wrong[:3])}{more} missing or of the wrong size; run the command "
                "that made the pool again to restore them"
            )

    def _misshapen(self, shard: int) -> list[str]:
        """The files of a shard that are missing or have the wrong size."""
        number = len(self._parts.range(shard))
        wrong = []
        sizes = (number * math.prod(self._shape), 8 * number)
        for name, size in zip(file_names(shard), sizes, strict=True):
            file = self._parts.path / name
            # An .npy file's header has 128 bytes for an array of few dimensions.
            if not file.is_file() or file.stat().st_size != 128 + size:
                wrong.append(name)
        return wrong

    def damaged(self) -> list[str]:
        """The files that are missing or whose bytes do not match their SHA-256. Reads all of them."""
        return [name for part in range(self._parts.number) for name in self._parts.damaged(part)]

    def finish(self) -> None:
        """Every block has been put: complete the folder."""
        self._parts.finish()

    def __getstate__(self) -> dict[str, Any]:
        # A DataLoader worker maps the shards itself.
        return self.__dict__ | {"_maps": {}}


def _load(file: Path) -> np.ndarray:
    try:
        shard: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        return shard
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} cannot be read ({error}); run the command that made the pool again to restore it"
        ) from error


def file_names(shard: int) -> tuple[str, str]:
    return f"images-{shard:05d}.npy", f"labels-{shard:05d}.npy"


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
