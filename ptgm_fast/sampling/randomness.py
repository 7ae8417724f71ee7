"""Seeds by purpose, orders by index: nothing here has a state that a resume would have to restore."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, purpose: str) -> int:
    """A 64-bit seed for one purpose of a run: BLAKE2b(seed, purpose), in [0, 2**64).

    Streams of different purposes are independent for practical use, and adding a purpose never
    shifts the numbers of another one.
    """
    digest = hashlib.blake2b(f"{int(seed)}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Run a block (a module's initialisation) under torch's own generators seeded for one purpose.

    The generators' states are restored on leaving, so the caller's stream is not disturbed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, purpose))
        yield


class AddressedOrder:
    """An endless order over ``num_items``: position p is item p % n of the permutation of epoch p // n.

    Every item is visited once an epoch, and ``indices(start, count)`` depends only on
    (seed, purpose, start, count): any batch split, prefetch depth or resume point sees the same order.
    Raises ValueError if num_items < 1.
    """

    def __init__(self, num_items: int, *, seed: int, purpose: str) -> None:
        if num_items < 1:
            raise ValueError(f"num_items must be at least 1, got {num_items}")
        self.num_items = num_items
        self._seed = seed
        self._purpose = purpose
        # A batch touches one or two neighbouring epochs; small sets touch a few more.
        self._epochs: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) >= 16:
                self._epochs.clear()
            key = derive_seed(self._seed, f"{self._purpose}/epoch {epoch}")
            generator = np.random.Generator(np.random.Philox(key=key))
            self._epochs[epoch] = generator.permutation(self.num_items)
        return self._epochs[epoch]

    def indices(self, start: int, count: int) -> Tensor:
        """Items at positions start .. start + count - 1, int64 [count]."""
        parts = []
        position = start
        while position < start + count:
            epoch, offset = divmod(position, self.num_items)
            take = min(self.num_items - offset, start + count - position)
            parts.append(self._epoch(epoch)[offset : offset + take])
            position += take
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64))
