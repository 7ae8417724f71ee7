"""What every conditional generator offers, whoever trained it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ptgm_fast.generators.card import Card
from ptgm_fast.generators.conditions import ConditionKind


class Generator(nn.Module, ABC):
    """G(z, y): latents and a condition in, images out.

    card: the numbers a caller needs to draw latents and conditions and to read the images.
    """

    card: Card

    @property
    def class_table(self) -> Tensor | None:
        """The class embeddings [num_classes, D], if `generate` takes mixtures of their rows; None if it does not."""
        return None

    def example(
        self, truncation: float | None = None, *, num: int = 2, seed: int = 0
    ) -> tuple[Any, ...]:
        """Inputs of `forward` as `generate` makes them at this truncation, of num samples: what `optimize` traces and compares.

        They are drawn from `seed` as a run's are: another distribution would judge the network where it is never used.
        Raises ValueError where a rewrite of `forward` could not stand in for the whole of `generate`.
        """
        raise ValueError(f"{type(self).__name__} does not say what its forward takes (`example`)")

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
