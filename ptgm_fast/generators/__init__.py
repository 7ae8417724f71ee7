"""Conditional generators under one contract: a module, its card, and `generate(latents, condition)`."""

from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.card import (
    CARD_FILE,
    AdapterCard,
    Card,
    FileCard,
    GeneratorCard,
    Soft,
    read_card,
    write_card,
)
from ptgm_fast.generators.cbn import ConditionalBatchNorm2d, ConditionalBatchNormGenerator
from ptgm_fast.generators.conditions import CONDITION_KINDS, ConditionKind, condition_kind
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.loading import (
    GENERATORS,
    folder_of,
    has_classifier,
    load,
    load_card,
    load_classifier,
)
from ptgm_fast.generators.rewriter import Optimized, optimize

__all__ = [
    "CARD_FILE",
    "CONDITION_KINDS",
    "GENERATORS",
    "AdaptedGenerator",
    "AdapterCard",
    "Card",
    "ConditionKind",
    "ConditionalBatchNorm2d",
    "ConditionalBatchNormGenerator",
    "FileCard",
    "Generator",
    "GeneratorCard",
    "Optimized",
    "Soft",
    "condition_kind",
    "folder_of",
    "has_classifier",
    "load",
    "load_card",
    "load_classifier",
    "optimize",
    "read_card",
    "write_card",
]
