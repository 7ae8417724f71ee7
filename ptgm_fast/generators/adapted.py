"""What the generators here share: input checks, and conversion of the condition to the form the network takes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators.card import AdapterCard, GeneratorCard
from ptgm_fast.generators.conditions import ConditionKind, condition_kind
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.soft import sample_classes


class AdaptedGenerator(Generator):
    """A generator whose card states its inputs and whose `forward(latents, condition)` makes the images.

    `forward` gets checked latents [N, *card.latent_shape] and a condition in the form that `card.condition` names; if the
    card's truncation selects statistics or interpolates styles, the truncation too. A network whose class embeddings are
    mixed (`class-embedding`) has a `class_table`.
    """

    card: AdapterCard | GeneratorCard

    def synthesize(self, latents: Tensor, condition: Tensor, truncation: float | None) -> Tensor:
        """Images from checked inputs. If card.soft is "mix-embedding", the condition may also be soft labels [N, K]."""
        return self(latents, condition, *self._truncation(truncation))

    def example(
        self, truncation: float | None = None, *, num: int = 2, seed: int = 0
    ) -> tuple[Any, ...]:
        card = self.card
        like = next(chain(self.parameters(), self.buffers()), torch.empty(0))
        latents = kernels.latents(
            num,
            card.latent_dim,
            seed=seed,
            truncation=None if card.truncation == "interpolates-styles" else truncation,
        ).to(like)
        draws = torch.Generator().manual_seed(seed)
        # Between one class and a few, like a classifier's output.
        soft = torch.softmax(4 * torch.randn(num, card.num_classes, generator=draws), 1).to(like)
        if card.condition == "class-embedding":
            assert self.class_table is not None
            condition = soft @ self.class_table
        elif card.condition == "soft-vector" or card.soft == "mix-embedding":
            condition = soft
        else:
            condition = torch.randint(card.num_classes, (num,), generator=draws).to(like.device)
        return latents.view(num, *card.latent_shape), condition, *self._truncation(truncation)

    def _truncation(self, truncation: float | None) -> tuple[float, ...]:
        if self.card.truncation not in ("selects-statistics", "interpolates-styles"):
            return ()
        return (1.0 if truncation is None else truncation,)

    def generate(
        self,
        latents: Tensor,
        condition: Tensor,
        *,
        kind: ConditionKind | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Images for a condition, [N, channels, image_size, image_size] in card.output_range.

        latents: float [N, *card.latent_shape], or [N, latent_dim], drawn from N(0, I). condition: class indices int64
        [N], soft labels [N, K] (mixed in embedding space, never hardened) or, where the network mixes embeddings, those
        [N, card.embedding_dim]; `kind` names the form where the sizes are ambiguous. truncation: see `Card`. Gradients
        flow to latents and to floating-point conditions. Raises ValueError for other forms, and UserError for a soft
        label if the network takes class indices and no `soft` option was chosen.
        """
        card = self.card
        if latents.shape[1:] not in (card.latent_shape, (card.latent_dim,)) or len(latents) != len(
            condition
        ):
            raise ValueError(
                f"latents have shape {list(latents.shape)}; expected {[len(condition), *card.latent_shape]}, one row "
                "per condition"
            )
        if truncation is not None:
            if card.truncation == "none":
                raise ValueError(f"generator {card.name!r} has no truncation; leave it out")
            if not 0 < truncation <= 1:
                raise ValueError(f"truncation must lie in (0, 1], got {truncation}")
            if card.truncation == "scales-latents":
                latents = latents * truncation
        width = card.embedding_dim if card.condition == "class-embedding" else None
        found = condition_kind(
            condition, num_classes=card.num_classes, embedding_dim=width, kind=kind
        )
        latents = latents.reshape(-1, *card.latent_shape)
        return self.synthesize(latents, self._native(latents, condition, found), truncation)

    def _native(self, latents: Tensor, condition: Tensor, kind: ConditionKind) -> Tensor:
        """The condition in the form the network takes."""
        card = self.card
        if card.condition == "class-embedding":
            rows = self.class_table
            assert rows is not None
            if kind == "class":
                return F.embedding(condition, rows)
            condition = condition.to(rows.dtype)
            return condition @ rows if kind == "soft-label" else condition
        if card.condition == "soft-vector":
            is_class = kind == "class"
            vector = F.one_hot(condition, card.num_classes) if is_class else condition
            return vector.to(latents.dtype)
        if kind == "class" or card.soft == "mix-embedding":
            return condition
        if card.soft == "sample-class":
            return sample_classes(condition, latents, seed=card.soft_seed)
        raise UserError(
            f"generator {card.name!r} takes only class indices, and soft labels are never hardened silently. Choose "
            'soft="mix-embedding" (its class embeddings are mixed) or soft="sample-class" (a class is drawn for each '
            "image); in a URI: ?soft=mix-embedding"
        )
