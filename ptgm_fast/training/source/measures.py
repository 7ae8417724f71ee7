"""The quality of a pair: do samples match their label, and do they vary within a class? Judged by a separate network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.data import ImageSet
from ptgm_fast.errors import UserError
from ptgm_fast.generators import Generator
from ptgm_fast.models import TargetNetwork
from ptgm_fast.sampling import derive_seed
from ptgm_fast.training.source.data import deformed
from ptgm_fast.training.source.options import SourceOptions

BATCH = 256


def class_groups(
    class_names: tuple[str, ...], equivalent: str | tuple[tuple[str, ...], ...]
) -> Tensor:
    """The group number of each class, int64 [K]: equal for classes that `SourceOptions.equivalent` counts as one.

    Raises UserError for a name that is not a class, and for one that is listed twice.
    """
    keys = [name.casefold() if equivalent == "ignore-case" else name for name in class_names]
    groups = () if isinstance(equivalent, str) else equivalent
    listed = [name for group in groups for name in group]
    for name in listed:
        if name not in class_names:
            raise UserError(
                f"equivalent names the class {name!r}, which the data does not have; its classes: {', '.join(class_names)}"
            )
        if listed.count(name) > 1:
            raise UserError(
                f"equivalent names the class {name!r} twice; a class belongs to one group"
            )
    for group in groups:
        for name in group:
            keys[class_names.index(name)] = group[0]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """The most probable class of each image [N, C, H, W], int64 [N]."""
    return torch.cat([network(part).argmax(1) for part in images.split(BATCH)])


def accuracy(predicted: Tensor, labels: Tensor, groups: Tensor) -> dict[str, float]:
    """Shares in [0, 1] of predictions that are the label's class (exact) and of its group (equivalent)."""
    groups = groups.to(labels.device)
    return {
        "exact": (predicted == labels).float().mean().item(),
        "equivalent": (groups[predicted] == groups[labels]).float().mean().item(),
    }


@torch.no_grad()
def prior_samples(
    generator: Generator, per_class: int, *, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`per_class` samples of each class in turn: images [K * per_class, C, H, W] and labels."""
    card = generator.card
    labels = torch.arange(card.num_classes, device=device).repeat_interleave(per_class)
    latents = kernels.latents(len(labels), card.latent_dim, seed=seed, start=0, device=device)
    parts = zip(latents.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([generator.generate(z, y) for z, y in parts]), labels


def diversity(generated: Tensor, real: Tensor) -> float:
    """Mean distance between two samples of a class, relative to real images: the mean over classes of the ratio.

    generated, real: [K, M, D]. 1 is as varied as the real images, 0 is a single image per class.
    """
    return (_mean_distance(generated) / _mean_distance(real)).mean().item()


def _mean_distance(samples: Tensor) -> Tensor:
    count = samples.shape[1]
    return torch.cdist(samples, samples).sum((1, 2)) / (count * (count - 1))


@torch.no_grad()
def _features(network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    extractor = TargetNetwork(
        copy.deepcopy(network), num_classes=num_classes, name="the judge"
    ).eval()
    return torch.cat([extractor.features(part) for part in images.split(BATCH)]).flatten(1)


def measure(
    generator: Generator,
    classifier: nn.Module,
    judge: nn.Module,
    training: ImageSet,
    holdout: ImageSet,
    options: SourceOptions,
    device: torch.device,
) -> tuple[dict[str, Any], Tensor]:
    """The card's figures, and the generated images [K, M, C, H, W] that they were measured on.

    Accuracies are measured on held-out images, deformed as in training. The real images for the diversity are deformed
    training images, which is what the generator was shown.
    """
    per_class, num_classes = options.samples_per_class, training.num_classes
    groups = class_groups(training.class_names, options.equivalent)

    def seed(purpose: str) -> int:
        return derive_seed(options.seed, f"source/figures/{purpose}")

    held = deformed(
        holdout.images[:].to(device), options.deformation, seed=seed("holdout"), start=0
    )
    samples, labels = prior_samples(generator, per_class, seed=seed("samples"), device=device)
    judged = predict(judge, samples)
    hits = (
        (groups[judged.cpu()] == groups[labels.cpu()]).view(num_classes, per_class).float().mean(1)
    )

    chosen = torch.cat(
        [_draw(training.labels, k, per_class, seed("real")) for k in range(num_classes)]
    )
    real = deformed(
        training.images[chosen].to(device), options.deformation, seed=seed("real"), start=0
    )

    def by_class(values: Tensor) -> Tensor:
        return values.reshape(num_classes, per_class, -1)

    figures = {
        "samples": len(samples),
        "classifier_accuracy": accuracy(
            predict(classifier, held), holdout.labels.to(device), groups
        ),
        "judge_accuracy": accuracy(predict(judge, held), holdout.labels.to(device), groups),
        "obedience_by_judge": accuracy(judged, labels, groups),
        "obedience_by_classifier": accuracy(predict(classifier, samples), labels, groups),
        "least_obedient_class": {
            "name": training.class_names[int(hits.argmin())],
            "equivalent": hits.min().item(),
        },
        "diversity_pixels": diversity(by_class(samples), by_class(real)),
        "diversity_judge_features": diversity(
            by_class(_features(judge, samples, num_classes)),
            by_class(_features(judge, real, num_classes)),
        ),
    }
    return _rounded(figures), samples.view(num_classes, per_class, *samples.shape[1:])


def _draw(labels: Tensor, label: int, count: int, seed: int) -> Tensor:
    """`count` training images of a class, spread over it; repeated (with new deformations) if there are fewer."""
    members = torch.nonzero(labels == label)[:, 0]
    offset = derive_seed(seed, str(label)) % len(members)
    return members[(offset + torch.arange(count) * max(1, len(members) // count)) % len(members)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return round(value, 4) if isinstance(value, float) else value
