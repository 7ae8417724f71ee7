"""A small BigGAN-style generator: class embedding, conditional batch norm, nearest upsampling, 3x3 convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.card import GeneratorCard


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are linear in a condition.

    y = (1 + gamma(c)) * (x - mean) / sqrt(var + eps) + beta(c), x [N, C, H, W], c [N, D], (gamma, beta) = W c + b.
    Batch statistics in training, running statistics (momentum 0.02) in evaluation.
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


class UpBlock(nn.Module):
    """Conditional norm, ReLU, nearest 2x upsampling, 3x3 convolution; then, optionally, a residual 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, condition_dim: int, *, residual: bool) -> None:
        super().__init__()
        self.norm = ConditionalBatchNorm2d(inputs, condition_dim)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.residual_norm = ConditionalBatchNorm2d(outputs, condition_dim) if residual else None
        self.residual_conv = nn.Conv2d(outputs, outputs, 3, padding=1) if residual else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = F.relu(self.norm(x, condition))
        hidden = self.conv(F.interpolate(hidden, scale_factor=2, mode="nearest"))
        if self.residual_norm is None or self.residual_conv is None:
            return hidden
        return hidden + self.residual_conv(F.relu(self.residual_norm(hidden, condition)))


class ConditionalBatchNormGenerator(AdaptedGenerator):
    """G(z, y) -> images in (-1, 1).

    The condition of every block is c = [z, e], e the class embedding (a row of E, or a mixture q @ E).
    A linear map of c gives the coarsest feature map; each further width is one `UpBlock`; the last
    resolution, where it would cost most, has no residual convolution. The image side is a multiple of
    2 ** (number of blocks).
    """

    card: GeneratorCard

    def __init__(self, card: GeneratorCard) -> None:
        """Fresh weights for the card's sizes (from torch's global RNG). Raises ValueError if the sizes do not fit."""
        super().__init__()
        num_blocks = len(card.widths) - 1
        if card.image_size % 2**num_blocks:
            raise ValueError(
                f"image_size {card.image_size} is not a multiple of {2**num_blocks}, as {num_blocks} upsampling blocks "
                f"(widths {list(card.widths)}) need"
            )
        self.card = card
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
        """Images [N, channels, S, S] from latents [N, latent_dim] and (mixed) class embeddings [N, embedding_dim]."""
        condition = torch.cat([latents, embedding], 1)
        hidden = self.base(condition).view(-1, self.card.widths[0], self.base_size, self.base_size)
        for block in self.blocks:
            hidden = block(hidden, condition)
        hidden = F.relu(self.norm(hidden, condition))
        return torch.tanh(self.to_image(hidden))
