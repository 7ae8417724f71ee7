"""A user's module, as shown in docs/generators.md."""

import torch
from torch import Tensor, cat, nn


class DCGAN(nn.Module):
    num_classes, latent_dim = 10, 16

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.ConvTranspose2d(26, 3, 8), nn.Tanh())

    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return self.net(cat([latents, one_hot], 1)[:, :, None, None])


class Indexed(nn.Module):
    """Takes only class indices, with two tables of one row per class."""

    num_classes, latent_dim, condition = 5, 3, "class-index"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(5, 16), nn.Embedding(5, 48)
        self.linear = nn.Linear(3, 16)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        hidden = (self.linear(latents) * self.first(labels)).repeat(1, 3)
        return (hidden + self.second(labels)).view(-1, 3, 4, 4).tanh()


class Guided(nn.Module):
    """Like Meta's DiT and VAR: a null class after the others, guidance in a batch of twice the size."""

    num_classes, latent_dim, condition, null_class = 5, 3, "class-index", 5

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(6, 48), nn.Linear(3, 48)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        labels = cat([labels, torch.full_like(labels, 5)])
        hidden = self.linear(cat([latents, latents])) * self.table(labels)
        with_class, without = hidden.chunk(2)
        return (without + 2 * (with_class - without)).view(-1, 3, 4, 4).tanh()


class Checked(Indexed):
    """Uses its labels outside its tables, too."""

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return super().forward(latents, labels) * (labels + 1)[:, None, None, None].clamp(max=3) / 3


class Unconditional(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return super().forward(latents, torch.zeros_like(one_hot))


class Deaf(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return super().forward(torch.zeros_like(latents), one_hot)


class OwnSeed(DCGAN):
    """Draws from its own seed, regardless of the latents."""

    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        seeded = torch.Generator().manual_seed(0)
        return super().forward(torch.randn(latents.shape, generator=seeded), one_hot)


class BatchStatistics(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return super().forward(latents - latents.mean(0), one_hot)


class Bytes(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return (super().forward(latents, one_hot) + 1) * 127.5


class Unit(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return (super().forward(latents, one_hot) + 1) / 2


class RGBA(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        images = super().forward(latents, one_hot)
        return cat([images, images[:, :1]], 1)


class Noise(DCGAN):
    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return super().forward(latents, one_hot) + 0.1 * torch.randn(len(latents), 3, 8, 8)


class Unbuildable(DCGAN):
    """Like a package that reads its checkpoint, saved on a GPU, when it is built."""

    def __init__(self) -> None:
        raise RuntimeError("Attempting to deserialize object on a CUDA device")


def exits() -> None:
    raise SystemExit("usage: train.py --data DIR")
