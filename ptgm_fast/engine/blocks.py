"""Images made in fixed-size blocks, so that a sample's bits do not depend on the batch it is served in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from ptgm_fast.engine.batch import Counts
from ptgm_fast.sampling import BLOCK

# With reuse, a group of this many blocks is repeated before the next one, so that no image appears twice in a batch.
GROUP_BLOCKS = 4
Make = Callable[[int], Tensor]


class Blocks:
    """Image n is image n % BLOCK of block n // BLOCK; make(first) returns the BLOCK images that start at `first`."""

    def __init__(self, make: Make, counts: Counts, *, kept: int) -> None:
        """kept: number of blocks to cache."""
        self._make, self._counts, self._kept = make, counts, kept
        self._blocks: OrderedDict[int, Tensor] = OrderedDict()

    def images(self, numbers: range) -> Tensor:
        """The images of consecutive numbers, [N, C, H, W]."""
        parts = []
        position = numbers.start
        while position < numbers.stop:
            block, offset = divmod(position, BLOCK)
            take = min(BLOCK - offset, numbers.stop - position)
            parts.append(self._block(block)[offset : offset + take])
            position += take
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _block(self, block: int) -> Tensor:
        if block not in self._blocks:
            self._blocks[block] = self._make(block * BLOCK)
            self._counts.synthesized += BLOCK
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        return self._blocks[block]


def generated(samples: range, reuse: int, num_images: int | None = None) -> list[range]:
    """The numbers of the images that consecutive samples show, as a list of ranges.

    Sample s shows image s if reuse is 1. Otherwise, images form groups of G = GROUP_BLOCKS * BLOCK, and each group is
    served `reuse` times before the next: s = (q * reuse + k) * G + j shows image q * G + j for the k-th time. num_images:
    the total number of images (None: unbounded); the last group holds the remainder.
    """
    if reuse == 1:
        return [samples]
    whole = GROUP_BLOCKS * BLOCK
    grouped = None if num_images is None else num_images // whole * whole
    runs = []
    position = samples.start
    while position < samples.stop:
        if grouped is None or num_images is None or position < grouped * reuse:
            turn, offset = divmod(position, whole)
            first, size = turn // reuse * whole, whole
        else:
            first, size = grouped, num_images - grouped
            offset = (position - grouped * reuse) % size
        take = min(size - offset, samples.stop - position)
        runs.append(range(first + offset, first + offset + take))
        position += take
    return runs
