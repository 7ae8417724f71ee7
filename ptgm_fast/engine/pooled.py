"""A pool's images for any training loop: as batches in an addressed order, or as a map-style dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ptgm_fast.engine.batch import Batch, Counts
from ptgm_fast.sampling import Pool, PoolOrder

ViewsOf = Callable[..., tuple[Tensor, Tensor | None]]


def shown(images: Tensor, views_of: ViewsOf | None, **numbers: Any) -> tuple[Tensor, Tensor | None]:
    """The views of uint8 images, addressed by sample number; without views, the images themselves in [-1, 1]."""
    if views_of is None:
        return images.float() / 127.5 - 1, None
    return views_of(images, **numbers)


def pooled_batch(
    pool: Pool,
    order: PoolOrder,
    views_of: ViewsOf | None,
    samples: range,
    counts: Counts,
    dtype: torch.dtype,
) -> Batch:
    """A batch of these samples. ``generated`` holds the images' numbers in the pool; ``soft_labels`` only if conditioned."""
    numbers = order.indices(samples.start, len(samples))
    made = pool.made
    stored, labels = pool.take(numbers)
    counts.synthesized += pool.made - made
    counts.served += len(samples)
    with pool.spans("views"):
        images, strong = shown(stored, views_of, start=samples.start)
    soft = pool.soft_labels
    return Batch(
        images.to(dtype),
        strong,
        labels,
        None if soft is None else soft[labels],
        torch.arange(samples.start, samples.stop, device=pool.device),
        numbers.to(pool.device),
    )


class PoolDataset(Dataset[tuple[Tensor, ...]]):
    """A pool as a map-style dataset, for any DataLoader, sampler and collate function.

    Item n is (image n, its label) or, with a pair of views, (weak view, strong view, label): tensors [C, H, W] and int64 [].
    In epoch e, item n has the views of sample e * len + n: call `set_epoch` before each epoch, as with torch's
    DistributedSampler (persistent DataLoader workers do not see the change).
    """

    def __init__(self, pool: Pool, views_of: ViewsOf | None, dtype: torch.dtype) -> None:
        self.pool, self._views_of, self._dtype = pool, views_of, dtype
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which selects the views shown from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[tuple[Tensor, ...]]:
        """All items of a batch at once, as torch's DataLoader requests them."""
        chosen = torch.tensor(numbers, dtype=torch.int64)
        stored, labels = self.pool.take(chosen)
        samples = (chosen + self._epoch * len(self)).to(stored.device)
        # Views are channels-last; each item is a contiguous image.
        columns = [
            views.to(self._dtype)
            for views in shown(
                stored, self._views_of, **({"index": samples} if self._views_of else {})
            )
            if views is not None
        ]
        return [
            (*(column[i].contiguous() for column in columns), labels[i])
            for i in range(len(numbers))
        ]
