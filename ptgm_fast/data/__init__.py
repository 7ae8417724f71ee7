"""Labelled images by URI, and the split of a target task into training, validation and test."""

from ptgm_fast.data.images import Fit, ImageSet
from ptgm_fast.data.loading import SCHEMES, load
from ptgm_fast.data.splits import Split, split_per_class

__all__ = ["SCHEMES", "Fit", "ImageSet", "Split", "load", "split_per_class"]
