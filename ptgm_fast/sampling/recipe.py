"""What defines a pool's images: their law, and how they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptgm_fast.data import Images, OnDisk, in_batches
from ptgm_fast.data.images import to_uint8
from ptgm_fast.models.precision import resolved
from ptgm_fast.sampling.conditioning import ConditioningTable
from ptgm_fast.sampling.randomness import AddressedOrder, seeded
from ptgm_fast.sampling.source import FrozenGenerator
from ptgm_fast.sampling.synthesize import Synthesis
from ptgm_fast.spans import Spans, no_spans

FORMAT, VERSION = "ptgm-fast pool", 1
# A convolution's rounding depends on the batch size: every image is made in a batch of this size, at a fixed place.
BLOCK = 64
SOFT_LABELS = "soft_labels.npy"


def digest_of(*tensors: Images) -> str:
    """SHA-256 of tensors' bytes, shapes and dtypes."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        for part in in_batches(tensor) if isinstance(tensor, OnDisk) else (tensor,):
            flat = part.detach().cpu().contiguous().view(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights and buffers."""
    return digest_of(*module.state_dict().values())


class Recipe:
    """The definition of a pool's images: image n is a function of (generator, seed, label law, n).

    Uniform: y_n ~ Uniform{0 .. K - 1}. With a table of target images (PCS): image n is made for target image
    `AddressedOrder`(n), which visits all T of them once per epoch, each epoch in a new order, so that T * k images hold
    k for each. x_n = G(z_n, y_n), rounded to uint8. Images are made in blocks of BLOCK.
    """

    def __init__(
        self,
        source: FrozenGenerator,
        *,
        seed: int,
        precision: str = "float32",
        table: Callable[[], ConditioningTable] | None = None,
        targets: Mapping[str, Any] | None = None,
    ) -> None:
        """precision: see `in_precision`. table: computes the soft labels of the target images. targets: a JSON
        description of how they are computed, with ``num_target_images``."""
        self.source, self.seed = source, seed
        self._synthesis = Synthesis(source, seed=seed, purpose="pool", precision=precision)
        self._table, self._targets = table, targets
        if targets is not None:
            num = int(targets["num_target_images"])
            self._order = AddressedOrder(num, seed=seed, purpose="pool/order")
        self._precision = precision

    @cached_property
    def table(self) -> ConditioningTable | None:
        return self._table() if self._table else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.image_shape

    @cached_property
    def law(self) -> dict[str, Any]:
        """The JSON description that identifies a pool."""
        card = self.source.generator.card
        classifier = getattr(card, "classifier", None)
        files = {
            name: file.sha256
            for name, file in card.files.items()
            if classifier is None or name != classifier.file
        }
        settings = {
            key: value
            for key in ("settings", "soft", "soft_seed")
            if (value := getattr(card, key, None))
        }
        return {
            "format": FORMAT,
            "version": VERSION,
            "generator": {
                "name": card.name,
                "architecture": card.architecture,
                "sha256": files or {"weights": weights_digest(self.source.generator)},
                **settings,
            },
            "truncation": self.source.truncation,
            "seed": self.seed,
            "labels": {"law": "uniform", "num_classes": card.num_classes}
            if self._targets is None
            else {"law": "of target images", **self._targets},
            "channels": card.channels,
            "image_size": card.image_size,
            "image_range": "uint8: 0 is -1, 255 is 1",
            # How the images were computed: another way changes the last bits, so a pool is made in one way only.
            "computed": {
                "precision": resolved(self._precision, self.source.device),
                "optimized": getattr(self.source, "optimized", None) is not None,
                "block": BLOCK,
            },
        }

    def extra(self) -> dict[str, np.ndarray]:
        """Arrays that a pool's folder holds once: the soft labels of the target images, float32 [T, K]."""
        return {SOFT_LABELS: self.table.soft_labels.float().cpu().numpy()} if self.table else {}

    def block(self, number: int, spans: Spans = no_spans) -> tuple[Tensor, Tensor]:
        """The images of a block, uint8 [BLOCK, C, H, W], and their labels, int64 [BLOCK], on the source's device."""
        if not self.source.draws_from_torch:
            return self._block(number, spans)
        with seeded(self.seed, f"pool/block {number}"):
            return self._block(number, spans)

    @torch.no_grad()
    def _block(self, number: int, spans: Spans) -> tuple[Tensor, Tensor]:
        first = number * BLOCK
        if self.table is None:
            labels = self._synthesis.labels(BLOCK, first)
            return to_uint8(self._synthesis.images(BLOCK, first, labels, "class", spans)), labels
        labels = self._order.indices(first, BLOCK).to(self.source.device)
        with spans("conditioning"):
            condition, kind = self.table.conditions(labels)
        return to_uint8(self._synthesis.images(BLOCK, first, condition, kind, spans)), labels
