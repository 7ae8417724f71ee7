"""Pseudo conditional sampling (PCS): from target images to the conditions of their pseudo samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.data import Images, OnDisk, in_batches
from ptgm_fast.generators import ConditionKind
from ptgm_fast.sampling.source import SourceModels


@dataclass(frozen=True)
class ConditioningTable:
    """The generator's conditions, one row per target image; computed once, since C_s and the images never change.

    soft_labels q = softmax(C_s(x) / tau), float32 [N, K_s], rows sum to 1. embeddings: q @ E for a generator that
    takes mixtures of its class embeddings E, [N, D]; None for one that does not.
    """

    soft_labels: Tensor
    embeddings: Tensor | None

    def __len__(self) -> int:
        return len(self.soft_labels)

    def conditions(self, rows: Tensor) -> tuple[Tensor, ConditionKind]:
        """The conditions of target images `rows`, int64 [M], and their kind, as `Generator.generate` takes them."""
        if self.embeddings is not None:
            return self.embeddings[rows], "embedding"
        return self.soft_labels[rows], "soft-label"


def conditioning_table(
    source: SourceModels,
    images: Images,
    *further: Images,
    temperature: float = 1.0,
    top_k: int | None = None,
    batch_size: int | None = None,
) -> ConditioningTable:
    """The soft source labels of target images (Yamaguchi et al., arXiv:2204.12833, pseudo conditional sampling).

    images: uint8 or floats in [-1, 1], [N, C, H, W], in memory or on disk; further: more image sets, whose rows follow.
    temperature tau > 0 flattens (> 1) or sharpens (< 1) the labels. top_k keeps the k most probable classes of each image
    (and ties with the k-th) and renormalizes. Raises ValueError for values out of range.
    """
    sets = (images, *further)
    for each in sets:
        _check_images(each)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    batches = (each.split(batch_size) if batch_size else in_batches(each) for each in sets)
    logits = torch.cat([source.classify(b) for batch in batches for b in batch]).float()
    if logits.shape[1:] != (source.num_classes,):
        raise ValueError(
            f"the source classifier gives logits {list(logits.shape)} for a generator of {source.num_classes} classes; "
            "both must have the same classes, in the same order"
        )
    table = source.generator.class_table
    embeddings = None
    if table is not None:
        embeddings = kernels.class_mix(logits, table, temperature=temperature, top_k=top_k)
    if top_k is not None and top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return ConditioningTable((logits / temperature).softmax(1), embeddings)


def _check_images(images: Images) -> None:
    if isinstance(images, OnDisk):
        return
    accepted = "accepted: uint8 (0 to 255) or floats in [-1, 1], of shape [N, C, H, W]"
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"images are {images.dtype} of shape {list(images.shape)}; {accepted}")
    if images.is_floating_point() and images.numel():
        least, greatest = (float(v) for v in images.aminmax())
        # A NaN fails both comparisons. The slack is for the rounding of a resize.
        if not (least >= -1.01 and greatest <= 1.01):
            raise ValueError(f"images are floats from {least:g} to {greatest:g}; {accepted}")
