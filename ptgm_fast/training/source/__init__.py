"""Training a source pair: a classifier, a generator that obeys its labels, and the figures of a judge apart."""

from ptgm_fast.training.source.options import (
    ClassifierOptions,
    DeformationOptions,
    GeneratorOptions,
    SourceOptions,
)
from ptgm_fast.training.source.train import train_source

__all__ = [
    "ClassifierOptions",
    "DeformationOptions",
    "GeneratorOptions",
    "SourceOptions",
    "train_source",
]
