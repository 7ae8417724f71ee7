"""Common mistakes in combining a generator and a classifier, and which of them explains that samples are not recognized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptgm_fast.kernels.views import resized
from ptgm_fast.sampling import SourceModels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# An explanation must improve agreement by GAIN, and by DEVIATIONS standard deviations of the samples that change sides.
GAIN, DEVIATIONS = 0.05, 3.0
# An explanation under which fewer samples agree than this explains too little.
LEAST = 0.3


@dataclass(frozen=True)
class Misfit:
    """What is likely wrong, how to fix it, and the share of samples that would then agree."""

    cause: str
    fix: str
    top1: float


@dataclass(frozen=True)
class Way:
    """Another way to turn images u in [0, 1] into the classifier's input. fits(least): whether the minimum of u supports it."""

    cause: str
    fix: str
    inputs: Callable[[Tensor], Tensor]
    fits: Callable[[float], bool] = lambda least: True


class Readings:
    """The classifier's predictions for samples with known labels, int64 [N]: as configured, and in every other `Way`."""

    def __init__(self, source: SourceModels, labels: Tensor, *, every_way: bool) -> None:
        self.source, self.labels = source, labels
        self.ways = _ways(source) if every_way else []
        self._first: list[Tensor] = []
        self._in_five: list[Tensor] = []
        self._other: list[list[Tensor]] = [[] for _ in self.ways]
        self._least = float("inf")

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Classify the next samples, [M, C, H, W] in [-1, 1]."""
        source, start = self.source, sum(len(part) for part in self._first)
        logits = source.classify(images).cpu()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self._first.append(logits.argmax(1))
        asked = self.labels[start : start + len(images)]
        self._in_five.append((top == asked[:, None]).any(1))
        if not self.ways:
            return
        form = source.form or tuple(images.shape[1:])
        unit = (
            resized(images.to(source.device), *form, interpolation=source.interpolation) + 1
        ) / 2
        self._least = min(self._least, float(unit.min()))
        for way, given in zip(self.ways, self._other, strict=True):
            given.append(source.classifier(way.inputs(unit)).argmax(1).cpu())

    def first(self) -> Tensor:
        return torch.cat(self._first)

    def agreement(self) -> float:
        return float((self.first() == self.labels).double().mean())

    def top5(self) -> float:
        return float(torch.cat(self._in_five).double().mean())

    def other(self) -> list[tuple[Way, Tensor]]:
        ways = zip(self.ways, self._other, strict=True)
        return [(way, torch.cat(given)) for way, given in ways if way.fits(self._least)]


def _ways(source: SourceModels) -> list[Way]:
    mean, std = source.mean, source.std
    channels = source.form[0] if source.form else source.image_shape[0]

    def own(unit: Tensor) -> Tensor:
        return (unit - mean) / std

    def normalized(means: tuple[float, ...], stds: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
        m, s = (torch.tensor(v, device=source.device).view(1, -1, 1, 1) for v in (means, stds))
        return lambda unit: (unit - m) / s

    def setting(means: tuple[float, ...], stds: tuple[float, ...]) -> str:
        return f"Set source.classifier.mean = {list(means)} and std = {list(stds)}"

    imagenet = IMAGENET if channels == 3 else ((0.449,), (0.226,))
    known = {
        "0.5/0.5 (images in [-1, 1])": ((0.5,), (0.5,)),
        "ImageNet's": imagenet,
        "none (images in [0, 1])": ((0.0,), (1.0,)),
        "none (images in [0, 255])": ((0.0,), (1 / 255,)),
    }
    current = torch.broadcast_tensors(mean.flatten(), torch.zeros(channels, device=mean.device))[0]
    ways = _ranges(source.generator.card.output_range, own)
    for name, (means, stds) in known.items():
        told = torch.tensor(means, device=mean.device).expand(channels)
        same = torch.allclose(current, told) and torch.allclose(
            std.flatten().expand(channels), torch.tensor(stds, device=std.device).expand(channels)
        )
        if not same:
            cause = f"it was trained with another normalization, {name}"
            rounded = tuple(round(v, 6) for v in stds)
            ways.append(Way(cause, setting(means, rounded), normalized(means, stds)))

    if channels == 3:
        fix = "Reverse the channels in the generator's or the classifier's module"
        ways.append(
            Way(
                "one of the two has its channels in BGR order",
                fix,
                lambda u: own(u.flip(1)),
            )
        )
    return ways


def _ranges(declared: tuple[float, float], own: Callable[[Tensor], Tensor]) -> list[Way]:
    """The output range other than the declared one, for samples whose values support it."""
    if declared == (-1.0, 1.0):
        cause = "the generator's images are in [0, 1], not in [-1, 1]"
        fix = "Declare the range: output_range=0,1 in the generator's URI"
        return [Way(cause, fix, lambda unit: own(2 * unit - 1), lambda least: least > 0.49)]
    if declared == (0.0, 1.0):
        cause = "the generator's images are in [-1, 1], not in [0, 1]"
        fix = "Declare the range: output_range=-1,1 in the generator's URI"
        return [Way(cause, fix, lambda unit: own((unit + 1) / 2), lambda least: least < -0.01)]
    return []


def likely_misfit(readings: Readings) -> Misfit | None:
    """The most plausible mistake, among those that clearly improve on the current configuration; None if there is none.

    A permutation of the labels is estimated from the confusions on half of the samples and judged on the other half.
    """
    if not readings.ways:
        return None
    labels, given = readings.labels, readings.first()
    right, found = given == labels, []
    for way, other in readings.other():
        found.append((Misfit(way.cause, way.fix, _share(other == labels)), right, other == labels))
    num_classes = readings.source.num_classes
    mend = "Reorder the rows of the classifier's last layer to match the generator's classes"
    for step, direction in ((1, "after"), (-1, "before")):
        hits = given == (labels + step) % num_classes
        cause = f"its labels are shifted by one: class c of the generator is the class {direction} c of the classifier"
        found.append((Misfit(cause, mend, _share(hits)), right, hits))
    held = torch.arange(len(labels)) % 2 == 1
    order = _matched(labels[~held], given[~held], num_classes)
    hits = given[held] == order[labels[held]]
    changed = [k for k in labels.unique().tolist() if order[k] not in (k, -1)]
    names = readings.source.generator.card.class_names
    shown = ", ".join(f"{names[k]} is its {names[int(order[k])]}" for k in changed[:3])
    cause = f"its classes are in a different order than the generator's ({shown}, ...)"
    found.append((Misfit(cause, mend, _share(hits)), right[held], hits))
    better = [
        misfit
        for misfit, before, after in found
        if misfit.top1 >= LEAST and _is_better(after, before)
    ]
    best = max((misfit.top1 for misfit in better), default=0.0)
    # The first one close to the best: a shift is also a permutation of classes, and the simpler explanation.
    return next((misfit for misfit in better if misfit.top1 > best - 0.05), None)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _is_better(after: Tensor, before: Tensor) -> bool:
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return won - lost > max(GAIN * len(after), DEVIATIONS * (won + lost) ** 0.5)


def _matched(labels: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """A one-to-one map from labels to predicted classes, int64 [num_classes], most frequent pairs first; -1 for no match."""
    pairs, counts = torch.stack([labels, given], 1).unique(dim=0, return_counts=True)
    order, taken = torch.full((num_classes,), -1), set()
    for i in counts.argsort(descending=True, stable=True).tolist():
        label, other = pairs[i].tolist()
        if order[label] < 0 and other not in taken:
            order[label] = other
            taken.add(other)
    return order
