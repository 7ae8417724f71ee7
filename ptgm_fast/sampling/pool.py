"""A pool of pseudo images: made once, stored as uint8, served repeatedly under fresh views."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.errors import UserError
from ptgm_fast.sampling.parts import Parts, check_same, read_description
from ptgm_fast.sampling.randomness import AddressedOrder
from ptgm_fast.sampling.recipe import BLOCK, FORMAT, SOFT_LABELS, VERSION, Recipe
from ptgm_fast.sampling.stores import FolderStore, MemoryStore, Store
from ptgm_fast.spans import Spans, no_spans

# A kill costs up to one shard, and parallel processes take one each: not too large. Pools of millions: not too small.
SHARD_BYTES, SHARD_IMAGES = 16 * 2**20, 4096
# What may differ between a run and the pool it uses: the run's own seed only determines its order and views.
NOT_OF_THE_IMAGES = ("seed", "computed")


class Pool:
    """Images 0 .. count - 1 of a law, in a store. With a recipe, they are made in blocks when first needed.

    made: the number of images made here. seconds_per_image: the time that each took; None if none were made.
    """

    def __init__(
        self, law: Mapping[str, Any], count: int, store: Store, recipe: Recipe | None = None
    ) -> None:
        self.law, self.count, self.store, self.recipe = law, count, store, recipe
        self.spans: Spans = no_spans
        self.made = 0
        self._clock = _Clock(store.device)
        self._lock = threading.Lock()
        # Unknown before the store is begun; a read-only pool misses nothing.
        self._missing: set[int] | None = None if recipe else set()

    def __len__(self) -> int:
        return self.count

    @property
    def num_blocks(self) -> int:
        return -(-self.count // BLOCK)

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def draws_from_torch(self) -> bool:
        return self.recipe is not None and self.recipe.source.draws_from_torch

    @property
    def conditioned(self) -> bool:
        return bool(self.law["labels"]["law"] != "uniform")

    @cached_property
    def soft_labels(self) -> Tensor | None:
        """The soft labels of the target images that the images were made for, float32 [T, K]; None if uniform."""
        if not self.conditioned:
            return None
        if self.recipe is not None and self.recipe.table is not None:
            return self.recipe.table.soft_labels
        assert isinstance(self.store, FolderStore)
        return torch.from_numpy(np.array(self.store.load(SOFT_LABELS))).to(self.device)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.law["channels"], self.law["image_size"], self.law["image_size"]

    @property
    def num_bytes(self) -> int:
        """The size of all its images."""
        return self.count * math.prod(self.image_shape)

    @property
    def seconds_per_image(self) -> float | None:
        return self._clock.seconds() / self.made if self.made else None

    def take(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, C, H, W] and labels int64 [N] (class, or target image) of `numbers`, int64 [N] on the CPU.

        Both are on the pool's device. Raises IndexError for a number out of range.
        """
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.count:
            raise IndexError(f"numbers must lie in [0, {self.count}), the images of the pool")
        # Two iterations of one sampler may run at once, each in its own thread.
        with self._lock:
            if self.begin():
                for block in dict.fromkeys((numbers // BLOCK).tolist()):
                    self.make(block)
            with self.spans("pool"):
                return self.store.read(numbers)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def begin(self, *, again: bool = False) -> set[int]:
        """Open or allocate the store. Returns the blocks that are missing.

        again: look again for blocks added by other processes. Raises UserError as `Parts.begin` does.
        """
        if self._missing is None or (again and self.recipe):
            self._missing = self.store.begin()
            if not self._missing:
                self.store.finish()
        return self._missing

    def first(self, count: int) -> Pool:
        """The first `count` images of a read-only pool."""
        assert self.recipe is None
        return Pool(self.law, count, self.store)

    def make(self, block: int) -> None:
        """Make and store a block, unless it exists."""
        if block not in self.begin():
            return
        for number in (*self.store.before(block), block):
            made = self.made_block(number)
            with self.spans("pool"):
                self.put(number, *made)

    def made_block(self, block: int) -> tuple[Tensor, Tensor]:
        """Make a block's images and labels, without storing them."""
        assert self.recipe is not None
        with self._clock.timed():
            made = self.recipe.block(block, self.spans)
        self.made += BLOCK
        return made

    def put(self, block: int, images: Tensor, labels: Tensor) -> None:
        """Store a block made here or by another process."""
        missing = self.begin()
        self.store.put(block, images, labels)
        missing.discard(block)
        if not missing:
            self.store.finish()


def memory_pool(recipe: Recipe, count: int) -> Pool:
    """A pool in the memory of its generator's device."""
    store = MemoryStore(count, recipe.image_shape, recipe.source.device)
    return Pool(recipe.law, count, store, recipe)


def folder_pool(recipe: Recipe, count: int, path: Path) -> Pool:
    """A pool in a folder, which is created or resumed at `Pool.begin` or when the first image is requested."""
    parts = parts_of(recipe.law, count, path)
    store = FolderStore(parts, recipe.image_shape, recipe.source.device, recipe.extra)
    return Pool(recipe.law, count, store, recipe)


def open_pool(path: Path | str, *, device: torch.device | str = "cpu") -> Pool:
    """Open a complete pool, read-only. Raises UserError if there is none, or if a shard has the wrong size.

    The shards' contents are not checked; `pool.store.damaged()` does that.
    """
    folder = Path(path)
    found = read_description(folder)
    if found is None:
        raise UserError(
            f"{str(path)!r} holds no pool (no manifest.json); make one with ptgm-fast synthesize --format pool"
        )
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise UserError(
            f"{str(path)!r} has format {found.get('format')!r}, version {found.get('version')}; this version reads "
            f"{FORMAT!r}, version {VERSION}"
        )
    if "parts" not in found:
        raise UserError(
            f"pool {str(path)!r} is not finished; run the command that began it again to make the rest"
        )
    try:
        law = {
            key: value for key, value in found.items() if key not in ("parts", "count", "part_size")
        }
        shape = (int(law["channels"]), int(law["image_size"]), int(law["image_size"]))
        str(law["labels"]["law"])
        parts = Parts(folder, law, count=found["count"], size=int(found["part_size"]))
        if min(*shape, parts.count, parts.size) < 1 or parts.size % BLOCK:
            raise ValueError("a size is out of range")
        parts.begin()
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the manifest of pool {str(path)!r} is damaged ({error})") from error
    store = FolderStore(parts, shape, device)
    store.check()
    return Pool(law, parts.count, store)


def check_pool(pool: Pool, recipe: Recipe, count: int, where: str) -> None:
    """Raise UserError, listing both values, unless `pool` holds at least `count` images of the recipe's law, of any seed."""
    check_same(pool.law, recipe.law, where, NOT_OF_THE_IMAGES)
    if pool.count < count:
        raise UserError(
            f"{where} holds {pool.count:,} images, {count:,} are needed; use fewer, or make more: the same synthesize "
            f"command with --count {count} adds them"
        )


def parts_of(law: Mapping[str, Any], count: int, path: Path) -> Parts:
    """The shards of a pool's folder."""
    bytes_per_image = law["channels"] * law["image_size"] ** 2
    size = max(BLOCK, min(SHARD_IMAGES, SHARD_BYTES // bytes_per_image) // BLOCK * BLOCK)
    return Parts(path, law, count=count, size=size)


class PoolOrder:
    """An endless order over a pool's images in which no num_images // 2 consecutive samples show an image twice.

    The first epoch is 0, 1, 2, ...: the images are independent, and can be made as needed. In each later epoch, the first
    half is permuted, then the second half. The image at a position depends only on (seed, purpose, position).
    """

    def __init__(self, num_images: int, *, seed: int, purpose: str) -> None:
        if num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {num_images}")
        self.num_images = num_images
        sizes = num_images // 2, num_images - num_images // 2
        self._halves = [
            (first, AddressedOrder(size, seed=seed, purpose=f"{purpose}/half {half}"))
            for half, (first, size) in enumerate(zip((0, sizes[0]), sizes, strict=True))
        ]

    def indices(self, start: int, count: int) -> Tensor:
        """The images at positions start .. start + count - 1, int64 [count]."""
        parts = []
        position, stop = start, start + count
        while position < stop:
            epoch, offset = divmod(position, self.num_images)
            first, order = self._halves[offset >= self._halves[1][0]]
            take = min(first + order.num_items - offset, stop - position)
            if epoch == 0:
                parts.append(torch.arange(offset, offset + take))
            else:
                parts.append(first + order.indices(epoch * order.num_items + offset - first, take))
            position += take
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


class _Clock:
    """Seconds of work on a device: wall-clock time, or between events on GPUs, so that timing does not synchronize."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._events.append((first, last))

    def seconds(self) -> float:
        for first, last in self._events:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1e3
        self._events.clear()
        return self._seconds
