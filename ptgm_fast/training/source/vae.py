"""The conditional VAE objective with the frozen classifier's cross-entropy on samples of the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast.generators import ConditionalBatchNormGenerator


class Encoder(nn.Module):
    """q(z | x, y): mean and log-variance of the latents, each [N, latent_dim], of images and their labels."""

    def __init__(
        self, *, num_classes: int, channels: int, image_size: int, latent_dim: int, width: int
    ) -> None:
        super().__init__()
        widths = (width, 2 * width, width * 8 // 3)
        side = image_size
        for _ in widths:
            side = (side + 1) // 2
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(widths[0], widths[1], 3, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(widths[1], widths[2], 3, 2, 1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
        )
        self.embedding = nn.Embedding(num_classes, 64)
        self.head = nn.Sequential(
            nn.Linear(widths[2] * side * side + 64, 128),
            nn.LeakyReLU(0.1),
            nn.Linear(128, 2 * latent_dim),
        )

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([self.convolutions(images), self.embedding(labels)], 1)
        mean, log_variance = self.head(hidden).chunk(2, 1)
        return mean, log_variance


@dataclass(frozen=True)
class StepInputs:
    """One step's inputs: images float [N, C, H, W] in [-1, 1] with labels [N]; standard normal noise [N, D] for the
    reparametrization; latents [M, D] and labels [M] of the prior samples."""

    images: Tensor
    labels: Tensor
    noise: Tensor
    prior_latents: Tensor
    prior_labels: Tensor


def objective(
    generator: ConditionalBatchNormGenerator,
    encoder: Encoder,
    classifier: nn.Module,
    inputs: StepInputs,
    *,
    kl_weight: float,
    auxiliary_weight: float,
) -> dict[str, Tensor]:
    """The terms of one step, each a mean over images; `loss` is minimized.

    reconstruction = BCE(G(z, y), x), summed over pixels, both mapped to [0, 1], z = mean + noise * std;
    kl = KL(q(z | x, y) || N(0, I)); auxiliary = CE(C(G(z', y')), y') on samples of the prior;
    loss = reconstruction + kl_weight * kl + auxiliary_weight * auxiliary.
    The VAE alone leaves the class to the latents, so its prior samples match their label poorly; the last term
    fixes that (Odena et al. 2017, arXiv:1610.09585, with a classifier that is trained beforehand and frozen).
    """
    mean, log_variance = encoder(inputs.images, inputs.labels)
    latents = mean + inputs.noise * (log_variance / 2).exp()
    # One pass for both halves: the running statistics then serve samples of the prior too.
    both = generator.generate(
        torch.cat([latents, inputs.prior_latents]), torch.cat([inputs.labels, inputs.prior_labels])
    )
    reconstructed, sampled = both.split([len(latents), len(inputs.prior_latents)])
    # tanh reaches +-1 in float32: keep the logarithms finite.
    # BCE raises on NaN, but training must end with its own error: NaN images still reach the other two terms.
    probability = ((reconstructed + 1) / 2 * 0.998 + 0.001).nan_to_num(nan=0.5)
    reconstruction = F.binary_cross_entropy(
        probability, (inputs.images + 1) / 2, reduction="sum"
    ) / len(latents)
    kl = 0.5 * (mean * mean + log_variance.exp() - 1 - log_variance).sum(1).mean()
    auxiliary = F.cross_entropy(classifier(sampled), inputs.prior_labels)
    loss = reconstruction + kl_weight * kl + auxiliary_weight * auxiliary
    return {"loss": loss, "reconstruction": reconstruction, "kl": kl, "auxiliary": auxiliary}
