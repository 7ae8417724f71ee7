"""Labelled images by URI, and the split of a target task into training, validation and test sets."""

from ptgm_fast.data.images import Fit, Images, ImageSet, in_batches
from ptgm_fast.data.loading import SCHEMES, load
from ptgm_fast.data.on_disk import OnDisk
from ptgm_fast.data.splits import Split, split_per_class

__all__ = [
    "SCHEMES",
    "Fit",
    "ImageSet",
    "Images",
    "OnDisk",
    "Split",
    "in_batches",
    "load",
    "split_per_class",
]
