"""What every conditional generator offers, whoever trained it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ptgm_fast.generators.card import GeneratorCard
from ptgm_fast.generators.conditions import ConditionKind


class Generator(nn.Module, ABC):
    """G(z, y): latents and a condition in, images out.

    card: the numbers a caller needs to draw latents and conditions and to read the images.
    """

    card: GeneratorCard

    @property
    def class_table(self) -> Tensor | None:
        """The class embeddings [num_classes, D], if `generate` takes mixtures of their rows; None if it does not."""
        return None

    @abstractmethod
    def generate(
        self,
        latents: Tensor,
        condition: Tensor,
        *,
        kind: ConditionKind | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Images of the condition, in the card's output range.

        latents [N, card.latent_dim]; condition and kind as in `conditions.condition_kind`. truncation: what the
        card's `truncation` says it means; None leaves the latents alone.
        Returns [N, channels, image_size, image_size].
        """
