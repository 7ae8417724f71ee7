"""The interface of every conditional generator, whoever trained it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ptgm_fast.generators.card import Card
from ptgm_fast.generators.conditions import ConditionKind


class Generator(nn.Module, ABC):
    """G(z, y): latents and a condition in, images out.

    card: what a caller needs to draw latents and conditions and to interpret the images.
    """

    card: Card

    @property
    def class_table(self) -> Tensor | None:
        """The class embeddings [num_classes, D], if `generate` takes mixtures of their rows; None if it does not."""
        return None

    def example(
        self, truncation: float | None = None, *, num: int = 2, seed: int = 0
    ) -> tuple[Any, ...]:
        """Inputs of `forward` for num samples, as `generate` makes them at this truncation; used by `optimize`.

        They are drawn from `seed`, distributed as in a run: any other distribution would test the network where it is
        never used. Raises ValueError if a rewrite of `forward` could not replace `generate` as a whole.
        """
        raise ValueError(
            f"{type(self).__name__} does not define inputs for its forward (`example`)"
        )

    @abstractmethod
    def generate(
        self,
        latents: Tensor,
        condition: Tensor,
        *,
        kind: ConditionKind | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Images for the condition, in the card's output range.

        latents [N, *card.latent_shape]; condition and kind as in `conditions.condition_kind`. truncation: as the
        card's `truncation` defines it; None leaves it out.
        Returns [N, channels, image_size, image_size].
        """
