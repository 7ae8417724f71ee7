"""Soft labels for networks that take only class indices: two ways to handle them, one of which the user chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sample_classes(soft: Tensor, latents: Tensor, *, seed: int) -> Tensor:
    """Draw one class per row from the soft labels: int64 [N], P(class k) = soft[n, k] / sum(soft[n]).

    soft: non-negative floats [N, K]. latents: float [N, ...]. The uniform number of a draw is a hash of (seed, the
    bits of the row's latent in float32): a sample keeps its class in any batch, as it keeps its latent, and rows with
    different latents draw independently. Inverse CDF in float32. No gradients.
    """
    bits = latents.detach().float().flatten(1).contiguous().view(torch.int32).to(torch.int64)
    # A multilinear hash (Carter, Wegman 1979) modulo 2^64, then the finalizer of splitmix64 (Steele et al. 2014).
    hashed = (bits * _hash_words(seed, bits.shape[1], bits.device)).sum(1)
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        hashed = (hashed ^ _shifted(hashed, shift)) * factor
    uniform = _shifted(hashed ^ _shifted(hashed, 31), 40).float() / 2**24
    cumulative = soft.detach().float().cumsum(1)
    classes = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(1)
    return classes.clamp(max=soft.shape[1] - 1)


@lru_cache(maxsize=8)
def _hash_words(seed: int, count: int, device: torch.device) -> Tensor:
    # Cached on the device: a copy at every call would synchronize.
    generator = np.random.Generator(np.random.Philox(key=seed))
    words = generator.integers(-(2**63), 2**63, size=count, dtype=np.int64)
    return torch.from_numpy(words).to(device)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def class_tables(module: nn.Module, num_rows: int) -> list[nn.Embedding]:
    """The embedding tables of a module that have one row per class (num_rows)."""
    return [
        child
        for child in module.modules()
        if isinstance(child, nn.Embedding) and child.num_embeddings == num_rows
    ]


@contextmanager
def mixing(module: nn.Module, weights: Tensor, num_rows: int) -> Iterator[Tensor]:
    """Within the block, index num_rows + n of every table with num_rows rows gives weights[n] @ table[:K], [D].

    weights: float [N, K], K <= num_rows; further rows (a null class) are never mixed. Other indices give their rows as
    before, so a network may add its null class to the batch, double the batch or reorder it. Yields the indices of all
    samples, int64 [N]: given these, a network that takes only indices runs with mixed class embeddings.
    """

    def answering(table: nn.Embedding) -> Callable[[Tensor], Tensor]:
        def forward(indices: Tensor) -> Tensor:
            rows = weights.to(table.weight.dtype) @ table.weight[: weights.shape[1]]
            mixed = F.embedding((indices - num_rows).clamp(min=0), rows)
            plain = F.embedding(indices.clamp(max=num_rows - 1), table.weight)
            return torch.where((indices < num_rows)[..., None], plain, mixed)

        return forward

    with ExitStack() as stack:
        for table in class_tables(module, num_rows):
            # An instance's own forward takes precedence over its class's.
            vars(table)["forward"] = answering(table)
            stack.callback(vars(table).pop, "forward")
        yield torch.arange(weights.shape[0], device=weights.device) + num_rows
