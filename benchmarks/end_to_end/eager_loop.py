"""A plain PyTorch implementation of the method, written from the paper: the baseline of the end-to-end figures.

From this project it uses only the data, the two frozen networks as their files give them, and the target network's
architecture. The generator is called in the loop, and the source classifier in every step for the soft label of the step's
target images. Views are kornia's. Losses, and in `eager_training` the optimizer, one-cycle schedule and weight average, are
torch's own, as are the random numbers. Budget, batch sizes and hyper-parameters are those of the run config. It is written
as a competent user would write it: frozen networks without autograd, no synchronization within a step, data in memory,
kornia's transforms on whole batches (torchvision draws one value for all images of a batch, and takes ten times as long image
by image). The recipe is also the config's: image pools if configured, made by the original generator, PP's progressive
resolution, and the precision of the training forward, by torch.autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast import generators
from ptgm_fast.kernels.views import ViewSpec
from ptgm_fast.models import TargetNetwork
from ptgm_fast.models.precision import for_training
from ptgm_fast.runs.pools import images_per_target, pool_size
from ptgm_fast.runs.task import Task
from ptgm_fast.training.options import HALF_SIDE_FIRST

# The P-SSL methods implemented below, each with one-cycle SGD.
METHODS = ("source-head", "uda", "fixmatch")

# All steps alike: fresh images, at full size, in float32.
PLAIN = (
    "precision=float32",
    "synthesis.images=fresh",
    "synthesis.images_per_target=fresh",
    "pp.resolution=[[1.0, 1.0]]",
)


def kornia_view(spec: ViewSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """Random views of float images in [0, 1], normalized, with the ranges of `spec` in kornia's terms.

    Brightness and contrast follow kornia's definitions: brightness is additive, contrast scales about 0. Raises
    ValueError for operations that the default task does not use and that are not implemented here.
    """
    plain = ViewSpec()
    left = ("flip", "saturation", "hue", "posterize", "solarize", "num_ops", "magnitude", "fill")
    if any(getattr(spec, name) != getattr(plain, name) for name in left):
        raise ValueError(f"the eager loop's views do not support: {', '.join(left)}")
    import kornia.augmentation as augmentation

    shift = (spec.translate, spec.translate)
    steps: list[nn.Module] = [
        augmentation.RandomAffine(spec.rotate, shift, spec.scale, spec.shear, p=1.0)
    ]
    if spec.brightness:
        steps.append(
            augmentation.RandomBrightness((1 - spec.brightness, 1 + spec.brightness), p=1.0)
        )
    if spec.contrast:
        steps.append(augmentation.RandomContrast((1 - spec.contrast, 1 + spec.contrast), p=1.0))
    if spec.cutout:
        area = spec.cutout**2
        steps.append(augmentation.RandomErasing((area, area), (1.0, 1.0), p=1.0))
    steps.append(augmentation.Normalize(torch.tensor(mean), torch.tensor(std)))
    return nn.Sequential(*steps)


class SourcePair:
    """The frozen generator and classifier as loaded: in torch's default layout or channels-last, compiled or not."""

    def __init__(self, task: Task, *, channels_last: bool = False, compiled: bool = False) -> None:
        config = task.config
        if config.source.classifier.network or set(config.data.mean) != {0.5}:
            raise ValueError(
                "the eager loop supports only a generator's own classifier, with the same normalization"
            )
        self.generator = generators.load(config.source.generator)
        self.classifier = generators.load_classifier(config.source.generator)
        for module in (self.generator, self.classifier):
            module.eval().requires_grad_(False)
            if channels_last:
                module.to(memory_format=torch.channels_last)
            if compiled:
                module.compile(dynamic=False)
        self.channels_last, self.compiled = channels_last, compiled

    def prepare(self, network: TargetNetwork) -> TargetNetwork:
        """The target network in the same layout, also compiled if the pair is."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        network = network.to(memory_format=layout)
        if self.compiled:
            network.network.compile(dynamic=False)
        return network


def in_a_step(task: Task, compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a network computes in a training step, as float32: with autocast if the config trains in bfloat16."""
    if for_training(task.config.precision, torch.device("cpu")) != "bfloat16":
        return compute

    def rounded(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = compute(images)
        return found.float()

    return rounded


class PseudoPreTrainingLoop:
    """CE(f(x), y) on the source head, y uniform, x a view of G_s(z, y), generated for the step or taken from a pool."""

    name = "pp"

    def __init__(self, task: Task, pair: SourcePair, network: TargetNetwork) -> None:
        self.options = task.config.pp
        self.pair = pair
        self.network = pair.prepare(network)
        self.features = in_a_step(task, self.network.features)
        self.view = kornia_view(self.options.views, task.data.mean, task.data.std)
        self.images_per_step = self.options.batch_size
        self._pool_size = pool_size(task.config.synthesis.images, self.options)
        self._side = task.data.train.images.shape[-1]
        self._step = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        """Views [B, C, H, W] and source labels [B]."""
        with torch.no_grad():
            images, labels = self.served()
            side = self.side()
            if side < images.shape[-1]:
                images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
            self._step += 1
            return self.view(images), labels

    def side(self) -> int:
        """The side of this step's views, in pixels."""
        phases: Any = self.options.resolution
        steps = self.options.steps
        if phases == "auto":
            phases = HALF_SIDE_FIRST
        part = next((p for p, end in phases if self._step < end * steps), phases[-1][0])
        return max(1, round(part * self._side))

    def served(self) -> tuple[Tensor, Tensor]:
        """A step's images in [0, 1] and labels."""
        if self._pool_size == "fresh":
            return self.made(self.options.batch_size)
        images, labels, order = self.pool
        index = next(order)
        return images[index], labels[index]

    def made(self, num: int) -> tuple[Tensor, Tensor]:
        card = self.pair.generator.card
        labels = torch.randint(card.num_classes, (num,))
        images = self.pair.generator.generate(torch.randn(num, card.latent_dim), labels)
        return (images + 1) / 2, labels

    @cached_property
    def pool(self) -> tuple[Tensor, Tensor, Iterator[Tensor]]:
        """Images and labels, made before the first step, and the order in which steps take them."""
        assert isinstance(self._pool_size, int)
        batch = self.options.batch_size
        made = [self.made(batch) for _ in range(-(-self._pool_size // batch))]
        images, labels = (torch.cat(parts)[: self._pool_size] for parts in zip(*made, strict=True))
        return images, labels, shuffled(self._pool_size, batch)

    def loss(self, views: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network.heads["source"](self.features(views)), labels)


class SupervisedLoop:
    """CE(f(x_t), y_t) + distillation of the source classifier, none, logit-matching or soft-target."""

    name = "supervised"

    def __init__(self, task: Task, pair: SourcePair, network: TargetNetwork) -> None:
        config, data = task.config, task.data
        self.options, self.distillation = config.training, config.distillation
        self.method = config.supervised.distillation
        self.pair = pair
        self.network = pair.prepare(network)
        self.features = in_a_step(task, self.network.features)
        self._classify = in_a_step(task, pair.classifier)
        # Converted to float in [0, 1] once: there are only a hundred.
        self.images, self.labels = data.train.images.float() / 255, data.train.labels
        self.view = kornia_view(self.options.views, data.mean, data.std)
        self.mean, self.std = (torch.tensor(s).view(1, -1, 1, 1) for s in (data.mean, data.std))
        self.images_per_step = self.options.batch_size
        self._order = shuffled(len(self.labels), self.options.batch_size)

    def batch(self) -> tuple[Tensor | None, ...]:
        """Views [B, C, H, W] and labels [B]."""
        index = next(self._order)
        with torch.no_grad():
            return self.view(self.images[index]), self.labels[index]

    def loss(self, views: Tensor, labels: Tensor) -> Tensor:
        return self.labelled_loss(self.features(views), views, labels)

    def labelled_loss(self, features: Tensor, views: Tensor, labels: Tensor) -> Tensor:
        heads, options = self.network.heads, self.distillation
        loss = F.cross_entropy(heads["target"](features), labels)
        if self.method == "logit-matching":
            difference = F.mse_loss(heads["source"](features), self.classify(views))
            loss = loss + options.logit_matching_weight * difference
        elif self.method == "soft-target":
            t = options.temperature
            target = F.softmax(self.classify(views) / t, 1)
            student = F.log_softmax(heads["source"](features) / t, 1)
            divergence = F.kl_div(student, target, reduction="batchmean")
            loss = loss + options.soft_target_weight * t**2 * divergence
        return loss

    @torch.no_grad()
    def classify(self, views: Tensor) -> Tensor:
        return self._classify(views)


class PseudoBatch(NamedTuple):
    """A P-SSL step's labelled views and labels, and the weak and (for two-view methods) strong views of pseudo samples."""

    views: Tensor
    labels: Tensor
    weak: Tensor
    strong: Tensor | None


class PseudoSemiSupervisedLoop(SupervisedLoop):
    """CE(f(x_t), y_t) + distillation + lambda L_u(x'), x' = G_s(z, softmax(C_s(x_t) / tau)), for `METHODS`.

    Raises ValueError for settings that are not implemented here.
    """

    name = "p-ssl"

    def __init__(self, task: Task, pair: SourcePair, network: TargetNetwork) -> None:
        config, data = task.config, task.data
        pssl = self.pssl = config.p_ssl
        written = (
            pssl.method in METHODS
            and pssl.source_label == "classifier"
            and pssl.batch_norm in ("split", "concat")
            and pssl.teacher == "self"
            and pssl.alignment in ("paper", "none")
            and pssl.filter == "none"
            and not config.data.unlabelled
            and not pssl.ramp_steps
            and not pssl.pcs_top_k
            and not config.source.truncation
        )
        if not written:
            raise ValueError(f"the eager loop implements {METHODS} with the default settings only")
        super().__init__(task, pair, network)
        self.method = pssl.distillation
        self.weak = kornia_view(pssl.weak_views, data.mean, data.std)
        self.strong = kornia_view(pssl.strong_views, data.mean, data.std)
        self.two_views = pssl.method != "source-head"
        self.images_per_step = self.options.batch_size + pssl.batch_size
        self._per_target = images_per_target(config, data)
        self._pseudo_order = shuffled(len(self.labels), pssl.batch_size)

    def batch(self) -> PseudoBatch:
        views, labels = super().batch()
        assert views is not None
        assert labels is not None
        with torch.no_grad():
            unit = self.served()
            weak = self.weak(unit)
            strong = self.strong(unit) if self.two_views else None
            return PseudoBatch(views, labels, weak, strong)

    def served(self) -> Tensor:
        """A step's pseudo images in [0, 1]."""
        if self._per_target == "fresh":
            return self.made(self.images[next(self._pseudo_order)])
        images, order = self.pool
        return images[next(order)]

    def made(self, targets: Tensor) -> Tensor:
        latents = torch.randn(len(targets), self.pair.generator.card.latent_dim)
        return (self.pseudo_images(latents, targets) + 1) / 2

    @cached_property
    def pool(self) -> tuple[Tensor, Iterator[Tensor]]:
        """`images_per_target` images for each target image, made before the first step, and the order in which steps take them."""
        targets = self.images.repeat(int(self._per_target), 1, 1, 1)
        images = torch.cat([self.made(part) for part in targets.split(128)])
        return images, shuffled(len(images), self.pssl.batch_size)

    @torch.no_grad()
    def pseudo_images(self, latents: Tensor, targets: Tensor) -> Tensor:
        """Pseudo conditional sampling: the classifier's soft label of each target image [0, 1] conditions the generator."""
        soft = F.softmax(
            self.pair.classifier((targets - self.mean) / self.std) / self.pssl.pcs_temperature, 1
        )
        return self.pair.generator.generate(latents, soft, kind="soft-label")

    def loss(  # type: ignore[override]
        self, views: Tensor, labels: Tensor, weak: Tensor, strong: Tensor | None
    ) -> Tensor:
        network, pssl = self.network, self.pssl
        weak_logits = None
        if strong is not None:
            with torch.no_grad():
                network.eval()
                weak_logits = network.heads["target"](self.features(weak))
            network.train()
        features, pseudo = self.both_features(views, weak if strong is None else strong)
        loss = self.labelled_loss(features, views, labels)
        return loss + pssl.weight * self.unlabelled_loss(pseudo, weak, weak_logits)

    def unlabelled_loss(self, pseudo: Tensor, weak: Tensor, weak_logits: Tensor | None) -> Tensor:
        pssl, heads = self.pssl, self.network.heads
        if weak_logits is None:
            t = pssl.source_temperature
            student = F.log_softmax(heads["source"](pseudo) / t, 1)
            target = F.softmax(self.classify(weak) / t, 1)
            return t * t * F.kl_div(student, target, reduction="batchmean")
        logits = heads["target"](pseudo)
        confidence, label = F.softmax(weak_logits, 1).max(1)
        mask = confidence >= pssl.threshold
        if pssl.method == "fixmatch":
            return (F.cross_entropy(logits, label, reduction="none") * mask).mean()
        target = F.softmax(weak_logits / pssl.temperature, 1)
        divergence = F.kl_div(F.log_softmax(logits, 1), target, reduction="none").sum(1)
        return (divergence * mask).mean()

    def both_features(self, labelled: Tensor, pseudo: Tensor) -> tuple[Tensor, Tensor]:
        if self.pssl.batch_norm == "concat":
            both = self.features(torch.cat([labelled, pseudo]))
            return both[: len(labelled)], both[len(labelled) :]
        features = self.features(labelled)
        with no_running_update(self.network):
            return features, self.features(pseudo)


Loop = PseudoPreTrainingLoop | SupervisedLoop
LOOPS: dict[str, type[Loop]] = {
    loop.name: loop for loop in (PseudoPreTrainingLoop, SupervisedLoop, PseudoSemiSupervisedLoop)
}


def shuffled(num: int, batch: int) -> Iterator[Tensor]:
    """Batches of indices from consecutive shuffled passes over the data."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(num)])
        yield left[:batch]
        left = left[batch:]


@contextmanager
def no_running_update(network: nn.Module) -> Iterator[None]:
    """Within the block, batch norm's running statistics do not change; each batch is normalized by its own."""
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    yield
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
