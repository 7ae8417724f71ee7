"""The source images: loading, the held-out part, and addressed batches of deformed images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.data import ImageSet, load, split_per_class
from ptgm_fast.errors import UserError
from ptgm_fast.sampling import AddressedOrder, derive_seed
from ptgm_fast.training.source.deform import deform, num_draws
from ptgm_fast.training.source.options import DeformationOptions, SourceOptions


def load_split(
    options: SourceOptions, on_notice: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images. Raises UserError for fewer than two classes and for a class with too few images."""
    data = load(
        options.data,
        channels=options.channels,
        image_size=options.image_size,
        on_notice=on_notice,
    )
    side = (options.image_size, options.image_size)
    if data.image_size != side or data.channels != options.channels:
        raise UserError(f"{options.data} gave images that do not match image_size and channels")
    if data.num_classes < 2:
        raise UserError(
            f"{options.data} has {data.num_classes} class; a source pair needs at least two"
        )
    counts = torch.bincount(data.labels, minlength=data.num_classes)
    least = int(counts.argmin())
    # A class's diversity is measured against at least two training images.
    needed = options.holdout_per_class + 2
    if counts[least] < needed:
        raise UserError(
            f"class {data.class_names[least]!r} of {options.data} has {int(counts[least])} images, but {needed} are needed: "
            f"holdout_per_class = {options.holdout_per_class} and at least 2 to train on. "
            "Add images, remove the class, or lower holdout_per_class"
        )
    split = split_per_class(
        data.labels,
        data.class_names,
        train=None,
        validation=0,
        test=options.holdout_per_class,
        seed=derive_seed(options.seed, "source/holdout"),
    )
    return data.subset(split.train), data.subset(split.test)


def to_float(images: Tensor) -> Tensor:
    """Images uint8 [N, C, H, W] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def deformed(images: Tensor, options: DeformationOptions, *, seed: int, start: int) -> Tensor:
    """Images uint8 [N, C, H, W] as float32 in [-1, 1], image i deformed by the draws of index start + i."""
    draws = kernels.latents(
        len(images), num_draws(options), seed=seed, start=start, device=images.device
    )
    return deform(to_float(images), draws, options)


class DeformedBatches:
    """Endless batches of deformed training images: batch `step` depends only on (seed, purpose, step)."""

    def __init__(
        self,
        data: ImageSet,
        source: SourceOptions,
        batch_size: int,
        *,
        purpose: str,
        device: torch.device,
    ) -> None:
        self._data, self._options, self._batch_size = data, source.deformation, batch_size
        self._order = AddressedOrder(len(data), seed=source.seed, purpose=f"{purpose}/order")
        self._seed = derive_seed(source.seed, f"{purpose}/deformation")
        self._device = device

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, H, W] in [-1, 1] and labels int64 [B]."""
        start = step * self._batch_size
        index = self._order.indices(start, self._batch_size)
        images = self._data.images[index].to(self._device)
        labels = self._data.labels[index].to(self._device)
        return deformed(images, self._options, seed=self._seed, start=start), labels
