"""The training loops: a classifier (source or judge), and the generator against the frozen classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.data import ImageSet
from ptgm_fast.errors import UserError
from ptgm_fast.generators import ConditionalBatchNormGenerator, GeneratorCard
from ptgm_fast.models import build, save_weights
from ptgm_fast.sampling import derive_seed, seeded
from ptgm_fast.training.source.data import DeformedBatches
from ptgm_fast.training.source.options import ClassifierOptions, SourceOptions
from ptgm_fast.training.source.vae import Encoder, StepInputs, objective

# report(stage, step, steps, metrics), after every step that has metrics to show.
Report = Callable[[str, int, int, Mapping[str, float]], None]
REPORT_EVERY = 20


def train_classifier(
    stage: str,
    options: ClassifierOptions,
    data: ImageSet,
    source: SourceOptions,
    report: Report,
    device: torch.device,
) -> nn.Module:
    """A classifier of deformed images in [-1, 1], frozen and in evaluation mode.

    `stage` ("classifier" or "judge") is the purpose under which all its random numbers are addressed.
    Raises UserError when the loss is not finite.
    """
    with seeded(source.seed, f"source/{stage}/init"):
        network = build(
            options.architecture,
            num_classes=data.num_classes,
            channels=source.channels,
            image_size=source.image_size,
        )
    network.to(device).to(memory_format=torch.channels_last)
    batches = DeformedBatches(
        data, source, options.batch_size, purpose=f"source/{stage}", device=device
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    network.train()
    with torch.random.fork_rng():
        for step in range(options.steps):
            # Dropout and the like draw from torch's generator, so it is seeded by the step.
            torch.manual_seed(derive_seed(source.seed, f"source/{stage}/step {step}"))
            images, labels = batches[step]
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            _descend(optimizer, loss, options.lr * (1 - step / options.steps))
            if _due(step, options.steps):
                _check_finite(loss, stage, step, "nothing of this stage was written; lower its lr")
                accuracy = (logits.detach().argmax(1) == labels).float().mean()
                metrics = {"loss": loss.item(), "accuracy": accuracy.item()}
                report(stage, step + 1, options.steps, metrics)
    return network.eval().requires_grad_(False)


def train_generator(
    card: GeneratorCard,
    classifier: nn.Module,
    data: ImageSet,
    source: SourceOptions,
    path: Path,
    report: Report,
    device: torch.device,
) -> ConditionalBatchNormGenerator:
    """A generator trained on `objective`, frozen and in evaluation mode; its weights are written to `path`.

    Every `checkpoint_every` steps, and at the end, the loss is checked and the weights are written. Raises
    UserError when the loss is not finite: `path` then holds the last good weights.
    """
    options = source.generator
    with seeded(source.seed, "source/generator/init"):
        generator = ConditionalBatchNormGenerator(card)
        encoder = Encoder(
            num_classes=card.num_classes,
            channels=card.channels,
            image_size=card.image_size,
            latent_dim=card.latent_dim,
            width=options.encoder_width,
        )
    # Channels-last takes a third less time here on a CPU; weights are still written channels-first.
    for module in (generator, encoder):
        module.to(device).to(memory_format=torch.channels_last)
    batches = DeformedBatches(
        data, source, options.batch_size, purpose="source/generator", device=device
    )
    optimizer = torch.optim.Adam(
        [*generator.parameters(), *encoder.parameters()], lr=options.lr, betas=(0.9, 0.99)
    )
    generator.train()
    for step in range(options.steps):
        images, labels = batches[step]
        rising = options.steps * options.auxiliary_ramp
        ramp = min(1.0, step / rising) if rising else 1.0
        terms = objective(
            generator,
            encoder,
            classifier,
            _inputs(images, labels, step, source, card),
            kl_weight=options.kl_weight,
            auxiliary_weight=options.auxiliary_weight * ramp,
        )
        _descend(optimizer, terms["loss"], options.lr * (1 - step / options.steps))
        last = step + 1 == options.steps
        if last or (step + 1) % options.checkpoint_every == 0:
            # A finite loss may have had a non-finite gradient, so the weights are checked too.
            finite = all(bool(p.detach().isfinite().all()) for p in generator.parameters())
            _check_finite(
                terms["loss"] if finite else terms["loss"] * torch.nan,
                "generator",
                step,
                f"{path.name} holds the last good weights, if any; lower generator.lr",
            )
            save_weights(generator, path)
        if _due(step, options.steps):
            metrics = {name: term.item() for name, term in terms.items()}
            report("generator", step + 1, options.steps, metrics)
    return generator.eval().requires_grad_(False)


def _inputs(
    images: Tensor, labels: Tensor, step: int, source: SourceOptions, card: GeneratorCard
) -> StepInputs:
    count, start = len(images), step * len(images)

    def normal(purpose: str) -> Tensor:
        seed = derive_seed(source.seed, f"source/generator/{purpose}")
        return kernels.latents(count, card.latent_dim, seed=seed, start=start, device=images.device)

    prior_labels = kernels.class_labels(
        count,
        card.num_classes,
        seed=derive_seed(source.seed, "source/generator/prior labels"),
        start=start,
        device=images.device,
    )
    return StepInputs(images, labels, normal("noise"), normal("prior latents"), prior_labels)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _due(step: int, steps: int) -> bool:
    return (step + 1) % REPORT_EVERY == 0 or step + 1 == steps


def _check_finite(loss: Tensor, stage: str, step: int, what_is_left: str) -> None:
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss of stage {stage!r} is {loss.item()} at step {step + 1}: {what_is_left}"
        )
