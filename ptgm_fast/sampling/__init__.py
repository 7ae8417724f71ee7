"""From target images and sample numbers to latents, conditions and pseudo images."""

from ptgm_fast.sampling.conditioning import ConditioningTable, conditioning_table
from ptgm_fast.sampling.pool import (
    Pool,
    PoolOrder,
    check_pool,
    folder_pool,
    memory_pool,
    open_pool,
)
from ptgm_fast.sampling.randomness import AddressedOrder, derive_seed, seeded
from ptgm_fast.sampling.recipe import BLOCK, Recipe
from ptgm_fast.sampling.source import FrozenGenerator, SourceModels
from ptgm_fast.sampling.synthesize import Synthesis, addressed_views

__all__ = [
    "BLOCK",
    "AddressedOrder",
    "ConditioningTable",
    "FrozenGenerator",
    "Pool",
    "PoolOrder",
    "Recipe",
    "SourceModels",
    "Synthesis",
    "addressed_views",
    "check_pool",
    "conditioning_table",
    "derive_seed",
    "folder_pool",
    "memory_pool",
    "open_pool",
    "seeded",
]
