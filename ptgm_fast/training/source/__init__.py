"""Training a source pair: a classifier, a generator whose samples match their labels, and the figures of a separate judge."""

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
