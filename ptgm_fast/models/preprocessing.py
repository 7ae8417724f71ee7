"""The preprocessing that a named network was trained with: the size, crop and normalization its package states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from ptgm_fast.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network's input.

    The shorter side is resized (antialiased) to image_size / crop, rounded down, and the center image_size x image_size is
    cropped; then (u - mean) / std for values u in [0, 1]. mean, std: one per channel, or one for all.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0

    @property
    def form(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.image_size, self.image_size

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{self.image_size}x{self.image_size} with {self.channels} channel{'s' * (self.channels > 1)} "
            f"({self.interpolation}, crop {self.crop:.3g}), mean {mean}, std {std}"
        )


def stated_preprocessing(network: str) -> Preprocessing | None:
    """What timm's `pretrained_cfg` or torchvision's default weights state for a named network (see `models.build`).

    None if nothing is stated: the project's own or the user's network, an unknown name, a package that is not installed.
    """
    scheme, _, name = network.partition(":")
    stated = {"timm": _timm, "torchvision": _torchvision}.get(scheme)
    return stated(name) if stated else None


def _timm(name: str) -> Preprocessing | None:
    try:
        import timm
    except ImportError:
        return None
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None:
        return None
    channels, size, _ = config.input_size
    return Preprocessing(
        size,
        channels,
        tuple(config.mean),
        tuple(config.std),
        _interpolation(config.interpolation, f"timm:{name}"),
        config.crop_pct,
    )


def _torchvision(name: str) -> Preprocessing | None:
    try:
        from torchvision import models
    except ImportError:
        return None
    if name not in models.list_models(module=models):
        return None
    weights = cast(Any, models.get_model_weights(name))
    if not len(weights):
        return None
    seen = weights.DEFAULT.transforms()
    (size,), (resized,) = seen.crop_size, seen.resize_size
    return Preprocessing(
        size,
        len(seen.mean),
        tuple(seen.mean),
        tuple(seen.std),
        _interpolation(seen.interpolation.value, f"torchvision:{name}"),
        size / resized,
    )


def _interpolation(name: str, network: str) -> Interpolation:
    if name not in ("bilinear", "bicubic"):
        raise UserError(
            f"{network} states interpolation {name!r}, which is not supported; set "
            "source.classifier.interpolation to bilinear or bicubic"
        )
    return cast(Interpolation, name)
