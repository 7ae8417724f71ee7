"""The images of the target task, with their normalization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ptgm_fast.data import Images, ImageSet


@dataclass(frozen=True)
class TargetData:
    """The target task as the stages see it. mean, std: normalization of [0, 1] images, one value per channel.

    unlabelled: further target images, whose labels are not known. read_asking returns the labelled images, then the
    unlabelled ones, uint8, read from their files in C_s's form; None: C_s sees the images as they are here.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unlabelled: ImageSet | None = None
    read_asking: Callable[[], tuple[Images, ...]] | None = None

    @cached_property
    def asking(self) -> tuple[Images, ...]:
        """The images from which soft source labels are computed, uint8 [N, C, H, W], at C_s's own size: the labelled ones,
        then the unlabelled ones. Read on first access."""
        if self.read_asking is not None:
            return self.read_asking()
        return tuple(each.images for each in self.sets)

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """The images that condition the generator, as the target network sees them."""
        return (self.train,) if self.unlabelled is None else (self.train, self.unlabelled)

    @property
    def num_asking(self) -> int:
        return sum(map(len, self.sets))

    def normalizer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function from uint8 images to the target network's input, without any augmentation."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(1, -1, 1, 1)

        def normalize(images: Tensor) -> Tensor:
            return (images.to(device).float() / 255 - mean) / std

        return normalize
