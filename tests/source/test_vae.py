"""The generator's objective against its formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ptgm_fast.generators import ConditionalBatchNormGenerator, GeneratorCard
from ptgm_fast.models import build
from ptgm_fast.training.source.vae import Encoder, StepInputs, objective


def test_objective_is_its_formula() -> None:
    torch.manual_seed(0)
    card = GeneratorCard(
        name="tiny", num_classes=3, class_names=("a", "b", "c"), latent_dim=2, embedding_dim=4, image_size=8,
        channels=3, widths=(4, 4, 4), data="nothing",
    )  # fmt: skip
    generator = ConditionalBatchNormGenerator(card).eval()
    encoder = Encoder(num_classes=3, channels=3, image_size=8, latent_dim=2, width=6)
    classifier = build("ptgm:cnn-small", num_classes=3, channels=3, image_size=8).eval()
    batch = StepInputs(
        images=torch.rand(4, 3, 8, 8) * 2 - 1,
        labels=torch.tensor([0, 1, 2, 0]),
        noise=torch.randn(4, 2),
        prior_latents=torch.randn(5, 2),
        prior_labels=torch.tensor([2, 1, 0, 0, 1]),
    )
    terms = objective(generator, encoder, classifier, batch, kl_weight=0.5, auxiliary_weight=3.0)

    mean, log_variance = encoder(batch.images, batch.labels)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = (
        torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
        .sum(1)
        .mean()
    )
    torch.testing.assert_close(terms["kl"], kl)

    probability = (
        generator.generate(mean + batch.noise * posterior.scale, batch.labels) + 1
    ) / 2 * 0.998 + 0.001
    target = (batch.images + 1) / 2
    entropy = -(target * probability.log() + (1 - target) * (1 - probability).log())
    torch.testing.assert_close(terms["reconstruction"], entropy.sum((1, 2, 3)).mean())

    logits = classifier(generator.generate(batch.prior_latents, batch.prior_labels))
    torch.testing.assert_close(terms["auxiliary"], F.cross_entropy(logits, batch.prior_labels))
    expected = terms["reconstruction"] + 0.5 * terms["kl"] + 3.0 * terms["auxiliary"]
    torch.testing.assert_close(terms["loss"], expected)
    terms["loss"].backward()
    assert all(p.grad is not None for p in generator.parameters())
