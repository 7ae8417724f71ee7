"""What every conditional generator offers, whoever trained it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ptgm_fast.generators.card import Card
from ptgm_fast.generators.conditions import ConditionKind


class Generator(nn.Module, ABC):
    """G(z, y): latents and a condition in, images out.

    card: the numbers a caller needs to draw latents and conditions and to read the images.
    """

    card: Card

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

        latents [N, *card.latent_shape]; condition and kind as in `conditions.condition_kind`. truncation: what the
        card's `truncation` says it means; None leaves it out.
        Returns [N, channels, image_size, image_size].
        """
