"""A small generator of the BigGAN kind: class embedding, conditional batch norm, nearest upsampling, 3x3 convolutions."""

from __future__ import annotations

from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.generators.card import GeneratorCard
from ptgm_fast.generators.conditions import ConditionKind, condition_kind
from ptgm_fast.generators.contract import Generator


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are linear in a condition.

    y = (1 + gamma(c)) * (x - mean) / sqrt(var + eps) + beta(c), x [N, C, H, W], c [N, D], (gamma, beta) = W c + b.
    Statistics of the batch in training, running ones (momentum 0.02) in evaluation.
    de Vries et al. 2017 (arXiv:1707.00683); Brock et al. 2019 (arXiv:1809.11096).
    """

    def __init__(self, num_features: int, condition_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_features, affine=False, momentum=0.02)
        self.scale_shift = nn.Linear(condition_dim, 2 * num_features)
        nn.init.normal_(self.scale_shift.weight, std=0.02)
        nn.init.zeros_(self.scale_shift.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.scale_shift(condition).chunk(2, 1)
        return self.norm(x) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]

    def relu(self, x: Tensor, condition: Tensor) -> Tensor:
        """relu(forward(x, condition)), in one pass over x where the statistics are known."""
        if self.training:
            return F.relu(self(x, condition))
        return kernels.cond_norm_act(x, *self.folded(condition))

    def folded(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluation as x * scale + shift, [N, C] each: the running statistics are in them."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        gain, bias = self.scale_shift(condition).chunk(2, 1)
        scale = (1 + gain) * torch.rsqrt(variance + self.norm.eps)
        return scale, bias - mean * scale


class UpBlock(nn.Module):
    """Conditional norm, ReLU, nearest 2x upsampling, 3x3 convolution; then, if asked, a residual 3x3 convolution."""

    phases: Tensor

    def __init__(self, inputs: int, outputs: int, condition_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.norm = ConditionalBatchNorm2d(inputs, condition_dim)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.residual_norm = ConditionalBatchNorm2d(outputs, condition_dim) if residual else None
        self.residual_conv = nn.Conv2d(outputs, outputs, 3, padding=1) if residual else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.norm.relu(x, condition)
        hidden = self.conv(F.interpolate(hidden, scale_factor=2, mode="nearest"))
        return self._add_residual(hidden, condition)

    def freeze(self) -> None:
        """Keep the weights of the phase convolution that upsampling and convolution are together."""
        weight = kernels.phase_weight(self.conv.weight.detach())
        self.register_buffer("phases", weight, persistent=False)

    @property
    def bias(self) -> Tensor:
        """Of the convolution behind the upsampling."""
        assert self.conv.bias is not None
        return self.conv.bias

    def convolved_phases(self, x: Tensor, condition: Tensor) -> Tensor:
        """The convolution on the small image, [N, 4C, H+1, W+1], without its bias; of a frozen block."""
        return F.conv2d(self.norm.relu(x, condition), self.phases, padding=1)

    def frozen(self, x: Tensor, condition: Tensor) -> Tensor:
        """`forward` of a frozen block, with 2.25 times fewer multiplications in its first convolution."""
        phases, bias = self.convolved_phases(x, condition), self.bias
        hidden = kernels.cond_norm_act(
            phases, torch.ones_like(bias), bias, activation="none", phases=True
        )
        return self._add_residual(hidden, condition)

    def _add_residual(self, hidden: Tensor, condition: Tensor) -> Tensor:
        if self.residual_norm is None or self.residual_conv is None:
            return hidden
        return hidden + self.residual_conv(self.residual_norm.relu(hidden, condition))


class ConditionalBatchNormGenerator(Generator):
    """G(z, y) -> images in (-1, 1).

    The condition of every block is c = [z, e], e the class embedding (a row of E, or a mixture q @ E).
    A linear map of c gives the coarsest feature map; each further width is one `UpBlock`; the last
    resolution has no residual convolution, where it would cost most. The image side is a multiple of
    2 ** (number of blocks).
    """

    card: GeneratorCard

    def __init__(self, card: GeneratorCard) -> None:
        """Fresh weights for the card's sizes (from torch's global generator). Raises ValueError if they do not fit."""
        super().__init__()
        num_blocks = len(card.widths) - 1
        if card.image_size % 2**num_blocks:
            raise ValueError(
                f"image_size {card.image_size} is not a multiple of {2**num_blocks}, as {num_blocks} upsampling blocks "
                f"(widths {list(card.widths)}) need"
            )
        self.card = card
        self.is_frozen = False
        self.base_size = card.image_size // 2**num_blocks
        condition_dim = card.latent_dim + card.embedding_dim
        self.embedding = nn.Embedding(card.num_classes, card.embedding_dim)
        self.base = nn.Linear(condition_dim, card.widths[0] * self.base_size**2)
        self.blocks = nn.ModuleList(
            UpBlock(inputs, outputs, condition_dim, residual=i < num_blocks - 1)
            for i, (inputs, outputs) in enumerate(
                zip(card.widths[:-1], card.widths[1:], strict=True)
            )
        )
        self.norm = ConditionalBatchNorm2d(card.widths[-1], condition_dim)
        self.to_image = nn.Conv2d(card.widths[-1], card.channels, 3, padding=1)

    @property
    def class_table(self) -> Tensor:
        return self.embedding.weight

    def forward(self, latents: Tensor, embedding: Tensor) -> Tensor:
        """Images [N, channels, S, S] of latents [N, latent_dim] and (mixed) class embeddings [N, embedding_dim]."""
        condition = torch.cat([latents, embedding], 1)
        hidden = self.base(condition).view(-1, self.card.widths[0], self.base_size, self.base_size)
        if self.is_frozen and not self.training:
            hidden = self._frozen_blocks(hidden, condition)
        else:
            for block in self.blocks:
                hidden = block(hidden, condition)
            hidden = self.norm.relu(hidden, condition)
        return torch.tanh(self.to_image(hidden))

    def _up_blocks(self) -> list[UpBlock]:
        return cast(list[UpBlock], list(self.blocks))

    def _frozen_blocks(self, hidden: Tensor, condition: Tensor) -> Tensor:
        *first, last = self._up_blocks()
        for block in first:
            hidden = block.frozen(hidden, condition)
        # The last block has no residual: its interleave, bias and the norm behind it are one pass.
        scale, shift = self.norm.folded(condition)
        phases = last.convolved_phases(hidden, condition)
        return kernels.cond_norm_act(phases, scale, shift + scale * last.bias, phases=True)

    def freeze(self) -> Self:
        """Evaluation mode, no gradients to weights, and what only weights that never change again allow.

        Upsampling and convolution become phase convolutions (`kernels.phase_weight`), which differ from them by
        rounding. Weights that are changed afterwards need another `freeze`. Returns itself.
        """
        for block in self._up_blocks():
            block.freeze()
        self.is_frozen = True
        return super().freeze()

    def embed(self, condition: Tensor, kind: ConditionKind | None = None) -> Tensor:
        """The class embedding of a condition: E[y], q @ E, or the embedding itself; [N, embedding_dim].

        Gradients flow to E, to soft labels and to embeddings. Raises ValueError (see `condition_kind`).
        """
        card = self.card
        found = condition_kind(
            condition, num_classes=card.num_classes, embedding_dim=card.embedding_dim, kind=kind
        )
        if found == "class":
            return self.embedding(condition)
        if found == "soft-label":
            return condition.to(self.embedding.weight.dtype) @ self.embedding.weight
        return condition.to(self.embedding.weight.dtype)

    def generate(
        self,
        latents: Tensor,
        condition: Tensor,
        *,
        kind: ConditionKind | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Images of a condition.

        latents: float [N, latent_dim], drawn from N(0, I). condition: class indices int64 [N], soft labels
        [N, num_classes] (mixed in embedding space, never hardened) or mixed embeddings [N, embedding_dim];
        `kind` names the form where the sizes leave it open. truncation in (0, 1]: the latents are multiplied
        by it, which trades variety for typical samples; None leaves them alone.
        Returns [N, channels, S, S] in (-1, 1). Gradients flow to latents and to floating-point conditions.
        Raises ValueError for latents or conditions of another form, and for truncation outside (0, 1].
        """
        if (
            latents.dim() != 2
            or latents.shape[1] != self.card.latent_dim
            or len(latents) != len(condition)
        ):
            raise ValueError(
                f"latents have shape {list(latents.shape)}; expected [{len(condition)}, {self.card.latent_dim}], one row a condition"
            )
        if truncation is not None:
            if not 0 < truncation <= 1:
                raise ValueError(f"truncation must lie in (0, 1], got {truncation}")
            latents = latents * truncation
        return self(latents, self.embed(condition, kind))
