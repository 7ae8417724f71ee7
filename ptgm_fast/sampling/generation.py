"""The frozen generator as samplers use it: addressed latents, images in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators import ConditionKind, Generator


class FrozenGenerator:
    """A generator G_s on a device, with the truncation that its samples are drawn with. Takes no gradient."""

    def __init__(
        self,
        generator: Generator,
        *,
        truncation: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """device: where the generator is; None finds it. Raises UserError for a truncation that the generator lacks."""
        if truncation is not None and generator.card.truncation == "none":
            raise UserError(
                f"generator {generator.card.name!r} has no truncation; leave the truncation out"
            )
        found = next((t.device for t in [*generator.parameters(), *generator.buffers()]), "cpu")
        self.device = torch.device(found if device is None else device)
        # Channels-last is the layout that convolutions run fastest in, on CPUs and GPUs alike.
        generator.to(memory_format=torch.channels_last)
        self.generator = generator
        self.truncation = truncation

    @property
    def num_classes(self) -> int:
        return self.generator.card.num_classes

    def latents(self, count: int, *, seed: int, start: int | Tensor) -> Tensor:
        """Latents of the samples start .. start + count - 1, float32 [count, *latent_shape]; start as `kernels.latents` takes it."""
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
