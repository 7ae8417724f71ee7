"""Filling a pool with several processes."""

from __future__ import annotations

import torch

from ptgm_fast.errors import UserError
from ptgm_fast.sampling import BLOCK, Pool
from ptgm_fast.sampling.stores import FolderStore
from ptgm_fast.training.distributed import ProcessGroup


def fill_together(pool: Pool, group: ProcessGroup) -> None:
    """Begin a pool; of several processes, each makes a share of it before the first step.

    A single process makes blocks as steps need them. Several processes exchange shards through the folder, which all must
    see, and blocks in memory by gathering. Raises UserError for a folder that is not shared, and as `Parts.begin`.
    """
    if group.size > 1 and pool.recipe is not None:
        if isinstance(pool.store, FolderStore):
            # The first process creates the folder, so that no other one continues a folder that is still being created.
            group.from_first(lambda: len(pool.begin()))
            first, number = group.share(pool.store.num_shards)
            for shard in range(first, first + number):
                for block in pool.store.blocks_of(shard):
                    pool.make(block)
            group.barrier()
            if pool.begin(again=True):
                raise UserError(
                    f"process {group.rank} cannot find the pool's shards that other processes made: the run's folder must be on a file "
                    'system that all machines share. Or use synthesis.pool = "memory" with a higher memory_limit'
                )
        else:
            _gather(pool, group)
    pool.begin()
    if pool.device.type == "cuda":
        # Its memory may just have been another tensor's, and batches are made on another stream.
        torch.cuda.synchronize()


def _gather(pool: Pool, group: ProcessGroup) -> None:
    if not pool.begin():
        return
    assert pool.recipe is not None
    shares = [ProcessGroup(rank, group.size).share(pool.num_blocks) for rank in range(group.size)]
    images = torch.zeros((BLOCK, *pool.image_shape), dtype=torch.uint8, device=pool.device)
    labels = torch.zeros(BLOCK, dtype=torch.int64, device=pool.device)
    for place in range(max(number for _, number in shares)):
        first, number = shares[group.rank]
        if place < number:
            images, labels = pool.made_block(first + place)
        gathered = zip(shares, group.gather(images), group.gather(labels), strict=True)
        for (first, number), its_images, its_labels in gathered:
            if place < number:
                pool.put(first + place, its_images, its_labels)
