"""The frozen source pair as the stages use it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ptgm_fast.generators import Generator, Optimized
from ptgm_fast.sampling.generation import FrozenGenerator


class SourceModels(FrozenGenerator):
    """A frozen generator G_s and a frozen source classifier C_s over the same K_s classes, on one device.

    The classifier sees ((x + 1) / 2 - mean) / std of images x, with the normalisation it was trained with. Neither takes
    a gradient. optimized: what `optimize` did, if it made the generator.
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
        super().__init__(generator, truncation=truncation, device=device)
        self.optimized = optimized
        self.classifier = classifier.to(self.device).requires_grad_(False).eval()
        self.classifier.to(memory_format=torch.channels_last)
        self.mean = torch.tensor(tuple(mean), device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(tuple(std), device=self.device).view(1, -1, 1, 1)

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Source logits [N, K_s] of images [N, C, H, W], uint8 or floats in [-1, 1]."""
        unit = images.float() / 255 if images.dtype == torch.uint8 else (images + 1) / 2
        return self.classifier((unit.to(self.device) - self.mean) / self.std)
