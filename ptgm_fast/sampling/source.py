"""The frozen networks as samplers use them: a generator with its truncation, and the source classifier."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators import ConditionKind, Generator, Optimized
from ptgm_fast.generators.rewriter.rounded import rounded
from ptgm_fast.kernels.views import resized
from ptgm_fast.models.precision import in_precision, resolved


class FrozenGenerator:
    """A generator G_s on a device, with the truncation of its samples. No gradients."""

    def __init__(
        self,
        generator: Generator,
        *,
        truncation: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """device: where the generator is; None detects it. Raises UserError for a truncation if the generator has none."""
        if truncation is not None and generator.card.truncation == "none":
            raise UserError(
                f"generator {generator.card.name!r} has no truncation; leave the truncation out"
            )
        found = next((t.device for t in [*generator.parameters(), *generator.buffers()]), "cpu")
        self.device = torch.device(found if device is None else device)
        # Convolutions run fastest in channels-last memory, on CPUs and GPUs alike.
        generator.to(memory_format=torch.channels_last)
        self.generator = generator
        self.truncation = truncation

    @property
    def num_classes(self) -> int:
        return self.generator.card.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""
        card = self.generator.card
        return card.channels, card.image_size, card.image_size

    def latents(self, count: int, *, seed: int, start: int | Tensor) -> Tensor:
        """Latents of the samples start .. start + count - 1, float32 [count, *latent_shape]; start as `kernels.latents` takes it."""
        card = self.generator.card
        drawn = kernels.latents(
            count,
            card.latent_dim,
            seed=seed,
            start=start,
            # Styles are truncated after the mapping network, which expects latents as in training.
            truncation=None if card.truncation == "interpolates-styles" else self.truncation,
            device=self.device,
        )
        return drawn.view(count, *card.latent_shape)

    def generate(
        self,
        latents: Tensor,
        condition: Tensor,
        kind: ConditionKind,
        *,
        precision: str = "float32",
    ) -> Tensor:
        """Images float32 [N, C, H, W] in [-1, 1]; the condition and its kind as `Generator.generate` takes them.

        precision: of the computation, see `in_precision`.
        """
        chosen = resolved(precision, self.device)
        generator = self._rounded if chosen == "bfloat16" else self.generator
        generate = partial(self._generate, generator)
        return in_precision(generate, device=self.device, precision=chosen)(
            latents, condition, kind
        )

    @cached_property
    def _rounded(self) -> Generator:
        """The generator, with the weights that autocast would round at every call rounded once."""
        return rounded(self.generator, torch.bfloat16)

    @torch.no_grad()
    def _generate(
        self, generator: Generator, latents: Tensor, condition: Tensor, kind: ConditionKind
    ) -> Tensor:
        card = generator.card
        # Where truncation scales the latents, they were already drawn with it.
        chosen = card.truncation in ("selects-statistics", "interpolates-styles")
        truncation = self.truncation if chosen else None
        images = generator.generate(latents, condition, kind=kind, truncation=truncation)
        if card.output_range == (-1.0, 1.0):
            return images
        least, greatest = card.output_range
        return (images - least) * (2 / (greatest - least)) - 1

    @cached_property
    def draws_from_torch(self) -> bool:
        """Whether a sample draws from torch's global RNG, whose numbers then depend on what else runs, and when.

        Tested on one sample, once; the caller's RNG state is preserved.
        """

        def states() -> list[Tensor]:
            found = [torch.get_rng_state()]
            if self.device.type != "cpu":
                found.append(torch.get_device_module(self.device).get_rng_state(self.device))
            return found

        with torch.random.fork_rng(), torch.no_grad():
            before = states()
            self._try_a_sample()
            return not all(torch.equal(a, b) for a, b in zip(before, states(), strict=True))

    def _try_a_sample(self) -> Tensor:
        label = torch.zeros(1, dtype=torch.int64, device=self.device)
        return self.generate(self.latents(1, seed=0, start=0), label, "class")


class SourceModels(FrozenGenerator):
    """A frozen generator G_s and a frozen source classifier C_s over the same K_s classes, on one device.

    The classifier sees ((x + 1) / 2 - mean) / std of images x, in the form (channels, height, width) and with the
    normalization it was trained with. No gradients. optimized: what `optimize` did, if it made the generator. precision:
    of the classifier, see `in_precision`.
    """

    def __init__(
        self,
        generator: Generator,
        classifier: nn.Module,
        *,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        form: tuple[int, int, int] | None = None,
        interpolation: str = "bilinear",
        truncation: float | None = None,
        optimized: Optimized | None = None,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        """form: channels, height and width that images are converted to, with `interpolation`, before C_s sees them; None:
        the generator's channels, at the images' own size."""
        super().__init__(generator, truncation=truncation, device=device)
        self.form, self.interpolation = form, interpolation
        self.optimized = optimized
        self.classifier = classifier.to(self.device).requires_grad_(False).eval()
        self.classifier.to(memory_format=torch.channels_last)
        self.precision = precision
        self.mean = torch.tensor(tuple(mean), dtype=torch.float32, device=self.device).view(
            1, -1, 1, 1
        )
        self.std = torch.tensor(tuple(std), dtype=torch.float32, device=self.device).view(
            1, -1, 1, 1
        )

    @torch.no_grad()
    def classify(self, images: Tensor, *, precision: str | None = None) -> Tensor:
        """Source logits [N, K_s] of images [N, C, H, W], uint8 or floats in [-1, 1], of any size and channels.

        precision: of this call; None: the one that the models were given.
        `resized` converts them to C_s's own form, antialiased when they shrink; images already in that form are unchanged.
        """
        form = self.form or (self.image_shape[0], *images.shape[2:])
        images = resized(images.to(self.device), *form, interpolation=self.interpolation)
        unit = images.float() / 255 if images.dtype == torch.uint8 else (images + 1) / 2
        precision = precision or self.precision
        classifier = in_precision(self.classifier, device=self.device, precision=precision)
        logits: Tensor = classifier((unit - self.mean) / self.std)
        return logits

    def _try_a_sample(self) -> Tensor:
        return self.classify(super()._try_a_sample())
