"""A labelled image set, and the only place where images are converted to a size and a number of channels."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.data.on_disk import OnDisk
from ptgm_fast.errors import UserError

Images = Tensor | OnDisk
# Batch limits of a forward without gradients.
BATCH_IMAGES, BATCH_VALUES = 500, 2**24
# ITU-R BT.601 luma: the weights that PIL and torchvision use for grey images.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 [N, C, H, W] with C in {1, 3}, in memory or on disk, labels int64 [N] in [0, K), and the K class names."""

    images: Images
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def form(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, *self.image_size

    def subset(self, indices: Tensor) -> ImageSet:
        """The images at `indices`, in memory; images on disk stay there if they exceed the memory limit they were read with."""
        images = self.images
        chosen = images.subset(indices) if isinstance(images, OnDisk) else images[indices]
        return ImageSet(chosen, self.labels[indices], self.class_names)


def only_used(labels: Sequence[int], names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Renumber the labels without the classes that have no images; returns labels int64 [N] and the remaining names."""
    used = sorted(set(labels))
    number = {label: i for i, label in enumerate(used)}
    return torch.tensor([number[label] for label in labels]), tuple(names[i] for i in used)


def no_labels(count: int) -> tuple[Tensor, tuple[str, ...]]:
    """Placeholder labels and names for images without classes."""
    return torch.zeros(count, dtype=torch.int64), ("unlabelled",)


def in_batches(images: Images) -> Iterable[Tensor]:
    """The images in order, at most `BATCH_IMAGES` of them and `BATCH_VALUES` values at a time."""
    return images.split(min(BATCH_IMAGES, max(1, BATCH_VALUES // images.shape[1:].numel())))


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8, rounded: x -> round((x + 1) * 127.5)."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def encode_png(image: Tensor) -> bytes:
    """Encode an image uint8 [C, H, W] with C in {1, 3} as PNG."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if len(image) == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images uint8 [N, C, H, W] with 1 or 3 channels: grey is repeated, colour becomes its BT.601 luma."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    if channels == 1:
        luma = torch.tensor(LUMA, dtype=torch.float32).view(1, 3, 1, 1)
        return (images.float() * luma).sum(1, keepdim=True).round_().clamp_(0, 255).to(torch.uint8)
    raise UserError(f"channels must be 1 or 3, got {channels}")


class Fit(NamedTuple):
    """A square of `size` pixels: antialiased resize of the shorter side to size / crop (rounded down), then centre crop."""

    size: int
    crop: float = 1.0
    interpolation: str = "bilinear"


def fit(images: Tensor, asked: int | Fit) -> Tensor:
    """Convert images uint8 [N, C, H, W] to [N, C, size, size] as described by `Fit`; a number means `Fit` of this size."""
    size, crop, interpolation = asked if isinstance(asked, Fit) else Fit(asked)
    # 224 / (224 / 232) may be rounded to just below 232.
    side = int(size / crop + 1e-6)
    height, width = images.shape[-2:]
    if (height, width) == (size, size) and side == size:
        return images
    # Rounded as in torchvision's Resize and CenterCrop: off by one pixel, the network would see another image.
    shorter = min(height, width)
    new = (side * height // shorter, side * width // shorter)
    resized = F.interpolate(
        images.float(), size=new, mode=interpolation, antialias=True, align_corners=False
    )
    top, left = round((new[0] - size) / 2), round((new[1] - size) / 2)
    cropped = resized[..., top : top + size, left : left + size]
    return cropped.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def prepare(images: Tensor, channels: int | None, image_size: int | Fit | None) -> Tensor:
    """Apply `with_channels` and `fit`; None keeps the channels or the size as they are."""
    if channels is not None:
        images = with_channels(images, channels)
    if image_size is not None:
        images = fit(images, image_size)
    return images
