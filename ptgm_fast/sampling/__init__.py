"""From target images and sample indices to latents, conditions and pseudo images."""

from ptgm_fast.sampling.conditioning import ConditioningTable, conditioning_table
from ptgm_fast.sampling.randomness import AddressedOrder, derive_seed, seeded
from ptgm_fast.sampling.source import SourceModels

__all__ = [
    "AddressedOrder",
    "ConditioningTable",
    "SourceModels",
    "conditioning_table",
    "derive_seed",
    "seeded",
]
