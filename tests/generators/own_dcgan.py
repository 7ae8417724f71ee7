"""A user's module: what docs/generators.md shows."""

from torch import Tensor, cat, nn


class DCGAN(nn.Module):
    num_classes, latent_dim = 10, 16

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.ConvTranspose2d(26, 3, 8), nn.Tanh())

    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return self.net(cat([latents, one_hot], 1)[:, :, None, None])


class Indexed(nn.Module):
    """Takes only class indices, with two tables of a row a class."""

    num_classes, latent_dim, condition = 5, 3, "class-index"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(5, 16), nn.Embedding(5, 48)
        self.linear = nn.Linear(3, 16)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        hidden = (self.linear(latents) * self.first(labels)).repeat(1, 3)
        return (hidden + self.second(labels)).view(-1, 3, 4, 4)
