"""The one way to make a pseudo sample: label, latents, image and views, each addressed by the sample's number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.generators import ConditionKind
from ptgm_fast.kernels.views import ViewSpec
from ptgm_fast.sampling.randomness import derive_seed
from ptgm_fast.sampling.source import FrozenGenerator
from ptgm_fast.spans import Spans, no_spans


def addressed_views(
    seed: int,
    purpose: str,
    weak: ViewSpec,
    strong: ViewSpec | None = None,
    *,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.5,
    dtype: torch.dtype = torch.float32,
    form: tuple[int, int, int] | None = None,
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`kernels.views` for a seed and purpose: call it with images and their sample numbers (start or index).

    form: channels, height and width of the views; None: the images'.
    """
    channels, size = (None, None) if form is None else (form[0], form[1:])
    return partial(
        kernels.views,
        weak=weak,
        strong=strong,
        seed=derive_seed(seed, f"{purpose}/views"),
        mean=mean,
        std=std,
        dtype=dtype,
        size=size,
        channels=channels,
    )


class Synthesis:
    """Pseudo samples for one purpose: sample n is a function of (seed, purpose, n) and its condition.

    y_n ~ Uniform{0 .. K_s - 1} (`labels`); z_n ~ N(0, I), truncated as the generator's samples are, and
    x_n = G_s(z_n, y_n or any other condition) (`images`); then one or two random views of x_n (`views`). No gradients.
    `start` is the first sample's number: an int, or an int64 [1] on the device that is read when the kernels run, so
    that a captured CUDA graph makes other samples at each replay.
    """

    def __init__(
        self,
        source: FrozenGenerator,
        *,
        seed: int,
        purpose: str,
        series: str = "",
        weak: ViewSpec | None = None,
        strong: ViewSpec | None = None,
        mean: float | tuple[float, ...] = 0.5,
        std: float | tuple[float, ...] = 0.5,
        dtype: torch.dtype = torch.float32,
        form: tuple[int, int, int] | None = None,
        precision: str = "float32",
    ) -> None:
        """series: separates the latents within a purpose. weak, strong, mean, std, dtype: of the views, see `kernels.views`.

        form: channels, height and width of the views; None: the images'. precision: of the generator, see `in_precision`.
        """
        self.source, self.series = source, series
        self._labels, self._latents = (
            derive_seed(seed, "/".join(filter(None, parts)))
            for parts in ((purpose, "labels"), (purpose, series, "latents"))
        )
        self._views = (
            addressed_views(seed, purpose, weak, strong, mean=mean, std=std, dtype=dtype, form=form)
            if weak is not None
            else None
        )
        self._precision = precision

    def labels(self, count: int, start: int | Tensor) -> Tensor:
        """Uniform source classes of the samples start .. start + count - 1, int64 [count]."""
        return kernels.class_labels(
            count,
            self.source.num_classes,
            seed=self._labels,
            start=start,
            device=self.source.device,
        )

    def images(
        self,
        count: int,
        start: int | Tensor,
        condition: Tensor,
        kind: ConditionKind,
        spans: Spans = no_spans,
    ) -> Tensor:
        """Images float32 [count, C, H, W] in [-1, 1] of those samples; condition and kind as `Generator.generate` takes them."""
        with spans("latents"):
            latents = self.source.latents(count, seed=self._latents, start=start)
        with spans("generator"):
            return self.source.generate(latents, condition, kind, precision=self._precision)

    def views(
        self,
        images: Tensor,
        start: int | Tensor,
        spans: Spans = no_spans,
        *,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The weak and the strong view of the samples start, start + 1, ...; the second is None without a strong spec.

        size: height and width; None: those of the form.
        """
        assert self._views is not None, "this synthesis has no views"
        with spans("views"):
            if size is None:
                return self._views(images, start=start)
            return self._views(images, start=start, size=size)
