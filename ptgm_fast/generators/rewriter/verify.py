"""A rewrite against its original."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def difference(original: nn.Module, rewritten: nn.Module, example: tuple[Any, ...]) -> float:
    """max |rewritten - original| / max(1, max |original|) on random inputs: two seeds, two batch sizes, one of them odd;
    infinite where shapes differ or a value is not finite: such outputs prove nothing."""
    worst = 0.0
    for seed, num in ((0, None), (1, 3)):
        inputs = _random(example, seed, num)
        expected, found = (pytree.tree_leaves(m(*inputs)) for m in (original, rewritten))
        for a, b in zip(expected, found, strict=True):
            if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
                return float("inf")
            if a.numel():
                error = (b - a).abs().nan_to_num().max() / a.abs().nan_to_num().max().clamp(min=1)
                worst = max(worst, error.item())
    return worst


def _random(example: tuple[Any, ...], seed: int, num: int | None) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        sizes = (num or value.shape[0], *value.shape[1:])
        if value.is_floating_point():
            return torch.randn(sizes, generator=generator).to(value)
        # Indices have a range that only the example knows.
        return value[torch.randint(len(value), sizes[:1], generator=generator).to(value.device)]

    return tuple(draw(value) for value in example)
