"""Seeds derived by purpose, orders addressed by index: nothing here has state that a resume would have to restore."""

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
    """Run a block (a module's initialization) under torch's own generators seeded for one purpose.

    The generators' states are restored on leaving, so the caller's stream is not disturbed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, purpose))
        yield


# Orders are copied to their device in blocks of about this many positions, or at most this many epochs: one copy for
# many steps.
BLOCK_POSITIONS, BLOCK_EPOCHS = 4096, 64


def uploaded(values: np.ndarray, device: torch.device) -> Tensor:
    """The values on the device; copied to a GPU from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class AddressedOrder:
    """An endless order over ``num_items``: position p is item p % n of the permutation of epoch p // n.

    Every item is visited once an epoch, and ``indices(start, count)`` depends only on
    (seed, purpose, start, count): any batch split, prefetch depth or resume point sees the same order.
    Raises ValueError if num_items < 1.
    """

    def __init__(
        self, num_items: int, *, seed: int, purpose: str, device: torch.device | str = "cpu"
    ) -> None:
        if num_items < 1:
            raise ValueError(f"num_items must be at least 1, got {num_items}")
        self.num_items = num_items
        self._seed, self._purpose, self._device = seed, purpose, torch.device(device)
        self._epochs_a_block = min(BLOCK_EPOCHS, -(-BLOCK_POSITIONS // num_items))
        self._blocks: dict[int, Tensor] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        key = derive_seed(self._seed, f"{self._purpose}/epoch {epoch}")
        return np.random.Generator(np.random.Philox(key=key)).permutation(self.num_items)

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            # A batch touches one block, or two neighbors.
            if len(self._blocks) >= 2:
                self._blocks.clear()
            first = number * self._epochs_a_block
            epochs = [self._epoch(first + i) for i in range(self._epochs_a_block)]
            self._blocks[number] = uploaded(np.concatenate(epochs), self._device)
        return self._blocks[number]

    def indices(self, start: int, count: int) -> Tensor:
        """Items at positions start .. start + count - 1, int64 [count] on the order's device."""
        parts = []
        position, size = start, self._epochs_a_block * self.num_items
        while position < start + count:
            block, offset = divmod(position, size)
            take = min(size - offset, start + count - position)
            parts.append(self._block(block)[offset : offset + take])
            position += take
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self._device)
