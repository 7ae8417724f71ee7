"""The frozen source pair as the stages use it: addressed latents, images, logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators import ConditionKind, Generator, Optimized


class SourceModels:
    """A frozen generator G_s and a frozen source classifier C_s over the same K_s classes, on one device.

    The generator is on `device` already, as `generators.load` returns it. The classifier sees ((x + 1) / 2 - mean) / std of them, with the
    normalisation it was trained with. Neither takes a gradient. optimized: what `optimize` did, if it made the generator.
    """

    def __init__(
        self,
        generator: Generator,
        classifier: nn.Module,
        *,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        truncation: float | None = None,
        optimized: Optimized | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if truncation is not None and generator.card.truncation == "none":
            raise UserError(
                f"generator {generator.card.name!r} has no truncation; leave source.truncation out"
            )
        self.device = torch.device(device)
        # Channels-last is the layout that convolutions run fastest in, on CPUs and GPUs alike.
        generator.to(memory_format=torch.channels_last)
        self.generator = generator
        self.classifier = classifier.to(self.device).requires_grad_(False).eval()
        self.classifier.to(memory_format=torch.channels_last)
        self.truncation = truncation
        self.optimized = optimized
        self.mean = torch.tensor(tuple(mean), device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(tuple(std), device=self.device).view(1, -1, 1, 1)

    @property
    def num_classes(self) -> int:
        return self.generator.card.num_classes

    def latents(self, count: int, *, seed: int, start: int) -> Tensor:
        """Latents of the samples start .. start + count - 1, float32 [count, *latent_shape]."""
        card = self.generator.card
        drawn = kernels.latents(
            count,
            card.latent_dim,
            seed=seed,
            start=start,
            # Styles are truncated behind the mapping network, which expects what it was trained with.
            truncation=None if card.truncation == "interpolates-styles" else self.truncation,
            device=self.device,
        )
        return drawn.view(count, *card.latent_shape)

    @torch.no_grad()
    def generate(self, latents: Tensor, condition: Tensor, kind: ConditionKind) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]; the condition and its kind as `Generator.generate` takes them."""
        card = self.generator.card
        # Where a truncation scales latents, they were drawn with it.
        chosen = card.truncation in ("selects-statistics", "interpolates-styles")
        truncation = self.truncation if chosen else None
        images = self.generator.generate(latents, condition, kind=kind, truncation=truncation)
        if card.output_range == (-1.0, 1.0):
            return images
        least, greatest = card.output_range
        return (images - least) * (2 / (greatest - least)) - 1

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Source logits [N, K_s] of images [N, C, H, W], uint8 or floats in [-1, 1]."""
        unit = images.float() / 255 if images.dtype == torch.uint8 else (images + 1) / 2
        return self.classifier((unit.to(self.device) - self.mean) / self.std)
