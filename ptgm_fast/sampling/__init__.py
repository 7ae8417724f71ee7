"""From target images and sample numbers to latents, conditions and pseudo images."""

from ptgm_fast.sampling.conditioning import ConditioningTable, conditioning_table
from ptgm_fast.sampling.randomness import AddressedOrder, derive_seed, seeded
from ptgm_fast.sampling.source import FrozenGenerator, SourceModels
from ptgm_fast.sampling.synthesize import Synthesis

__all__ = [
    "AddressedOrder",
    "ConditioningTable",
    "FrozenGenerator",
    "SourceModels",
    "Synthesis",
    "conditioning_table",
    "derive_seed",
    "seeded",
]
