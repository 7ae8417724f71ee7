"""`FastSampler`: pseudo samples from a frozen generator for any training loop."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from ptgm_fast.engine.batch import Batch, Counts
from ptgm_fast.engine.blocks import GROUP_BLOCKS, Blocks, generated
from ptgm_fast.engine.capture import CapturedStep
from ptgm_fast.engine.overlap import Overlap, plan_overlap
from ptgm_fast.engine.pooled import PoolDataset, ViewsOf, pooled_batch
from ptgm_fast.engine.stream import BatchStream
from ptgm_fast.generators import ConditionKind, Generator
from ptgm_fast.kernels.views import ViewSpec, asked_form, resized, view_preset
from ptgm_fast.models.precision import resolved
from ptgm_fast.sampling import (
    BLOCK,
    ConditioningTable,
    FrozenGenerator,
    Pool,
    PoolOrder,
    SourceModels,
    Synthesis,
    addressed_views,
    conditioning_table,
    open_pool,
)
from ptgm_fast.spans import Spans, no_spans

Views = ViewSpec | str | tuple[ViewSpec | str, ViewSpec | str] | None
# Image numbers -> the conditions given to the generator, and their kind.
Conditions = Callable[[range], tuple[Tensor, ConditionKind]]


class FastSampler(IterableDataset[Batch]):
    """Batches of pseudo samples, made ahead of the loop that trains on them.

        with FastSampler(generator, batch_size=64, views=("weak", "strong")) as sampler:
            for batch in sampler.uniform(num_batches=1000):
                loss = f(network, batch.images, batch.labels)

    A sample is a function of (seed, sample number): its latents, uniform label and views come from a counter-based RNG,
    and images are made in fixed-size blocks. On one device, its bits are therefore the same for any batch size, depth,
    overlap, number of DataLoader workers and resume point (`start`). (The exception is a network whose rounding depends
    on the number of threads, which `overlap` changes on CPUs. The bundled generator's does not.)
    """

    def __init__(
        self,
        generator: Generator | None = None,
        *,
        pool: Pool | Path | str | None = None,
        batch_size: int,
        seed: int = 0,
        truncation: float | None = None,
        views: Views = None,
        image_size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        device: torch.device | str = "auto",
        dtype: torch.dtype | None = None,
        precision: str = "float32",
        overlap: Overlap = "auto",
        depth: int = 3,
        reuse: int = 1,
        capture: bool = False,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        spans: Spans = no_spans,
    ) -> None:
        """generator: frozen, as returned by `generators.load` or `generators.optimize`. truncation: see `Card`.

        pool: serve the images of a pool (or of a pool's folder) instead of a generator's, in the order of `PoolOrder`,
        under fresh views, and none twice in a batch. A pool has its own generator, truncation and label law.

        views: None serves images in [-1, 1] as they are; a `ViewSpec` or a preset's name serves a random view of each; a
        pair serves a weak and a strong view. Views are normalized by mean and std (of [0, 1] images). image_size (a side
        or (height, width)) and channels (1 or 3): of the images served; None: the generator's; see `kernels.views`.
        device: "auto" is the generator's; any other moves the generator there. dtype: of the images served; None:
        float32. precision: used by the generator and a source classifier: "float32", "tf32" (CUDA only), "bfloat16" or
        "auto", see `in_precision`. overlap, depth: see `plan_overlap` and `Ring`. reuse: how often each image is served,
        under fresh views (see `blocks.generated`). capture: capture synthesis as a CUDA graph (`CapturedStep`; not
        verified on a GPU). spans: a context manager for each named phase.

        Raises ValueError for numbers below 1, an image size or channels out of range, reuse without views, capture on a
        device other than CUDA, and options that do not apply to a pool.
        """
        super().__init__()
        for name, value in (("batch_size", batch_size), ("depth", depth), ("reuse", reuse)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if reuse > 1 and views is None:
            raise ValueError("reuse serves an image again under a fresh view: pass views")
        if (generator is None) == (pool is None):
            raise ValueError("pass either a generator or a pool")
        self._source: FrozenGenerator | Pool
        if generator is not None:
            if device != "auto":
                generator.to(device)
            self._source = FrozenGenerator(generator, truncation=truncation)
        else:
            if truncation is not None or reuse > 1 or capture or precision != "float32":
                raise ValueError(
                    "truncation, precision, reuse and capture apply to a generator, not to a pool; leave them out"
                )
            self._source = _opened(pool, device, batch_size)
            self._source.spans = spans
        if capture and self.device.type != "cuda":
            raise ValueError(f"capture makes a CUDA graph; the generator is on {self.device}")
        self._precision = resolved(precision, self.device)
        if self._precision == "tf32" and self.device.type != "cuda":
            raise ValueError(f"TF32 needs a CUDA GPU; the generator is on {self.device}")
        self._batch_size, self._seed, self._reuse = batch_size, seed, reuse
        self._capture = capture
        self._weak, self._strong = _specs(views)
        made = self._source.image_shape
        asked = asked_form(made, image_size, channels)
        self._form = None if asked == made else asked
        self._dtype = dtype or torch.float32
        self._plan, self._depth, self._spans = plan_overlap(overlap, self._source), depth, spans
        self._mean, self._std = (
            tuple(v) if isinstance(v, Sequence) else float(v) for v in (mean, std)
        )
        self.counts = Counts()
        self._streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()
        self._captured: dict[Any, CapturedStep[Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self._source.device

    @property
    def _frozen(self) -> FrozenGenerator:
        if isinstance(self._source, Pool):
            raise ValueError("this sampler serves a pool; pass a generator to make new images")
        return self._source

    def __enter__(self) -> FastSampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.uniform())

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without this process's streams and graphs, for workers that are not forked."""
        own = ("_streams", "_captured")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _streams=weakref.WeakSet(), _captured={})

    def close(self) -> None:
        """Stop every iteration and its thread, and drop captured graphs. The sampler can be used again afterwards."""
        for stream in list(self._streams):
            stream.close()
        self._captured.clear()

    def uniform(self, num_batches: int | None = None, *, start: int = 0) -> BatchStream:
        """Batches with uniform source labels (pseudo pre-training); endless if num_batches is None.

        start: number of the first sample; batch i starts at sample start + i * batch_size. With a pool: its images in
        their order, whatever their label law.
        """
        begin = self._begin_pool if isinstance(self._source, Pool) else self._begin_uniform
        return self._stream(partial(begin, start), num_batches, start)

    def _begin_pool(self, start: int) -> Callable[[int], Batch]:
        pool = self._source
        assert isinstance(pool, Pool)
        order = PoolOrder(len(pool), seed=self._seed, purpose="sampler/pool order")

        def served(index: int) -> Batch:
            first = start + index * self._batch_size
            samples = range(first, first + self._batch_size)
            return pooled_batch(pool, order, self._views_of(), samples, self.counts, self._dtype)

        return served

    def _begin_uniform(self, start: int) -> Callable[[int], Batch]:
        synthesis = self._synthesis("uniform")

        def labels_of(numbers: range) -> Tensor:
            return synthesis.labels(len(numbers), numbers.start)

        def conditions(numbers: range) -> tuple[Tensor, ConditionKind]:
            return labels_of(numbers), "class"

        # Each iteration has its own blocks: two may run at once.
        blocks = self._blocks(synthesis, conditions)

        def produce(index: int) -> Batch:
            first = start + index * self._batch_size
            samples = range(first, first + self._batch_size)
            runs = generated(samples, self._reuse)
            labels = torch.cat([labels_of(run) for run in runs])
            return self._serve(synthesis, blocks, samples, runs, labels, None)

        return produce

    def conditioned(
        self,
        source_classifier: nn.Module,
        images: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> ConditionedSampler:
        """Samples conditioned on target images (P-SSL): the source classifier's soft labels are computed here, once.

        images: uint8 [M, C, H, W] or floats in [-1, 1], of a size that the classifier accepts; mean, std: its
        normalization of [0, 1] images. See `conditioning_table` for the other options and for what is raised.
        """
        source = SourceModels(
            self._frozen.generator,
            source_classifier,
            mean=mean,
            std=std,
            truncation=self._frozen.truncation,
            device=self.device,
            precision=self._precision,
        )
        with self._spans("conditioning"):
            table = conditioning_table(
                source, images.to(self.device), temperature=temperature, top_k=top_k
            )
        return ConditionedSampler(self, table)

    def sample(self, *, labels: Tensor, start: int = 0) -> Batch:
        """One batch: samples start, start + 1, ... with the given labels, int64 [N] or soft labels [N, K].

        With the labels that `uniform` draws, it gives the same bits. For soft labels, the batch's `labels` are their
        argmax. Raises ValueError if `labels` is empty.
        """
        labels = labels.to(self.device)
        soft = labels if labels.dim() == 2 else None
        kind: ConditionKind = "class" if soft is None else "soft-label"

        def conditions(numbers: range) -> tuple[Tensor, ConditionKind]:
            # Outside the requested range, a block repeats the nearest label.
            rows = torch.arange(numbers.start, numbers.stop, device=self.device) - start
            return labels[rows.clamp(0, len(labels) - 1)], kind

        if not len(labels):
            raise ValueError("labels must hold at least one label")
        synthesis = self._synthesis("uniform")
        samples = range(start, start + len(labels))
        hard = labels if soft is None else labels.argmax(1)
        blocks = self._blocks(synthesis, conditions)
        return self._serve(synthesis, blocks, samples, [samples], hard, soft)

    def dataset(self) -> PoolDataset:
        """The pool as a map-style dataset, with the sampler's views. Raises ValueError without a pool."""
        if not isinstance(self._source, Pool):
            raise ValueError(
                "a generator's images are endless: pass a pool for a map-style dataset"
            )
        return PoolDataset(self._source, self._views_of(), self._dtype)

    def _views_of(self) -> ViewsOf | None:
        if self._weak is None:
            return None if self._form is None else partial(_unviewed, form=self._form)
        return addressed_views(
            self._seed,
            "sampler",
            self._weak,
            self._strong,
            mean=self._mean,
            std=self._std,
            dtype=self._dtype,
            form=self._form,
        )

    def summary(self) -> dict[str, Any]:
        """Images synthesized and samples served so far."""
        return asdict(self.counts)

    def _synthesis(self, series: str) -> Synthesis:
        return Synthesis(
            self._frozen,
            seed=self._seed,
            purpose="sampler",
            series=series,
            weak=self._weak,
            strong=self._strong,
            mean=self._mean,
            std=self._std,
            dtype=self._dtype,
            form=self._form,
            precision=self._precision,
        )

    def _blocks(self, synthesis: Synthesis, conditions: Conditions) -> Blocks:
        spans = self._spans

        def make(first: int) -> Tensor:
            with spans("conditioning"):
                condition, kind = conditions(range(first, first + BLOCK))
            if not self._capture:
                return synthesis.images(BLOCK, first, condition, kind, spans)
            with spans("generator"):
                return self._replayed(synthesis, kind)(first, condition)

        return Blocks(make, self.counts, kept=GROUP_BLOCKS + 1 if self._reuse > 1 else 1)

    def _replayed(self, synthesis: Synthesis, kind: ConditionKind) -> CapturedStep[Tensor]:
        """The captured step that makes a series' blocks: one per stream, which orders the replays of its iterations."""
        stream = torch.get_device_module(self.device).current_stream(self.device)
        key = synthesis.series, kind, stream, threading.get_ident()
        if key not in self._captured:
            step = partial(synthesis.images, BLOCK, kind=kind)
            self._captured[key] = CapturedStep(step, self.device)
        return self._captured[key]

    def _serve(
        self,
        synthesis: Synthesis,
        blocks: Blocks,
        samples: range,
        runs: list[range],
        labels: Tensor,
        soft: Tensor | None,
    ) -> Batch:
        parts = [blocks.images(run) for run in runs]
        images, strong = parts[0] if len(parts) == 1 else torch.cat(parts), None
        if self._weak is not None:
            images, strong = synthesis.views(images, samples.start, self._spans)
        elif self._form is not None:
            images = resized(images, *self._form)
        self.counts.served += len(samples)
        numbers = torch.arange(samples.start, samples.stop, device=self.device)
        behind = torch.cat([torch.arange(r.start, r.stop, device=self.device) for r in runs])
        return Batch(images.to(self._dtype), strong, labels, soft, numbers, behind)

    def _stream(
        self, begin: Callable[[], Callable[[int], Batch]], num_batches: int | None, start: int
    ) -> BatchStream:
        stream = BatchStream(
            begin,
            num_batches=num_batches,
            plan=self._plan,
            depth=self._depth,
            device=self.device,
            describe=partial(_describe, start, self._batch_size),
            spans=self._spans,
        )
        self._streams.add(stream)
        return stream


def _describe(start: int, size: int, index: int) -> str:
    first = start + index * size
    return f"batch {index} (samples {first} to {first + size - 1})"


class ConditionedSampler:
    """Pseudo samples for target images: `batches(indices)`. table: the generator's conditions, one row per image."""

    def __init__(self, sampler: FastSampler, table: ConditioningTable) -> None:
        self._sampler = sampler
        self.table = table

    def batches(self, indices: Tensor | Sequence[int], *, start: int = 0) -> BatchStream:
        """Samples for the target images `indices`, int64 [M], in that order; the last batch may be smaller.

        Sample n is made for image indices[n] and depends on (seed, n, that image's soft label). With `reuse` r there are
        r * M samples. start: the first sample to serve, to resume there. Raises IndexError for an index out of range.
        """
        sampler, device = self._sampler, self._sampler.device
        rows = torch.as_tensor(indices, dtype=torch.int64, device=device)
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.table):
            raise IndexError(f"indices must lie in [0, {len(self.table)}), the target images given")
        size, total = sampler._batch_size, len(rows) * sampler._reuse
        num_batches = max(0, -(-(total - start) // size))
        return sampler._stream(partial(self._begin, rows, total, start), num_batches, start)

    def _begin(self, rows: Tensor, total: int, start: int) -> Callable[[int], Batch]:
        sampler = self._sampler
        size, synthesis = sampler._batch_size, sampler._synthesis("conditioned")

        def rows_of(numbers: range) -> Tensor:
            # The last block is padded with its last image.
            at = torch.arange(numbers.start, numbers.stop, device=sampler.device)
            return rows[at.clamp(max=len(rows) - 1)]

        def conditions(numbers: range) -> tuple[Tensor, ConditionKind]:
            return self.table.conditions(rows_of(numbers))

        blocks = sampler._blocks(synthesis, conditions)

        def produce(index: int) -> Batch:
            first = start + index * size
            samples = range(first, min(first + size, total))
            runs = generated(samples, sampler._reuse, len(rows))
            chosen = torch.cat([rows_of(run) for run in runs])
            return sampler._serve(
                synthesis, blocks, samples, runs, chosen, self.table.soft_labels[chosen]
            )

        return produce


def _opened(pool: Pool | Path | str | None, device: torch.device | str, batch_size: int) -> Pool:
    assert pool is not None
    if not isinstance(pool, Pool):
        pool = open_pool(pool, device="cpu" if device == "auto" else device)
    elif device != "auto" and torch.device(device) != pool.device:
        raise ValueError(f"the pool is on {pool.device}, not on {device}; leave the device out")
    if len(pool) < 2 * batch_size:
        raise ValueError(
            f"a pool of {len(pool)} images is too small for batch_size = {batch_size}: so that no batch shows an image twice, "
            f"it needs at least {2 * batch_size}"
        )
    return pool


def _unviewed(
    images: Tensor, form: tuple[int, int, int], **numbers: Any
) -> tuple[Tensor, Tensor | None]:
    return resized(images.float() / 127.5 - 1, *form), None


def _specs(views: Views) -> tuple[ViewSpec | None, ViewSpec | None]:
    if views is None:
        return None, None
    weak, strong = views if isinstance(views, tuple) else (views, None)
    found = [view_preset(v) if isinstance(v, str) else v for v in (weak, strong)]
    return found[0], found[1]
