"""Comparing a rewrite with its original, and both with float64, on the inputs that the network gets in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ptgm_fast.generators.rewriter.bake import duplicate

Inputs = tuple[Any, ...]
# Reordering a computation changes its rounding error somewhat: how many times the original's error is accepted.
ALLOWANCE = 2.0


@dataclass(frozen=True)
class Comparison:
    """Each number is a maximum difference, relative to max(1, largest value).

    difference: between the two; infinite if shapes differ or a value is not finite. errors: of the original and of the
    rewrite, with respect to float64; None if `difference` is within the tolerance or float64 is not available.
    """

    difference: float
    errors: tuple[float, float] | None

    def __str__(self) -> str:
        apart = f"differs from it by {self.difference:.2g} of max(1, largest value)"
        if self.errors is None:
            return apart
        original, rewrite = self.errors
        return f"{apart} and from float64 by {rewrite:.2g} (the original: {original:.2g})"

    def accepts(self, tolerance: float) -> bool:
        """Whether the rewrite is within the tolerance of the original, or about as close to float64."""
        if self.errors is None:
            return self.difference <= tolerance
        original, rewrite = self.errors
        return rewrite <= max(tolerance, ALLOWANCE * original)


def compare(
    original: nn.Module, rewrite: nn.Module, batches: Sequence[Inputs], tolerance: float
) -> Comparison:
    """Compare the two on every batch; float64 is computed only if they differ by more than the tolerance."""
    made = [outputs(rewrite, inputs) for inputs in batches]
    difference = _worst(made, [outputs(original, inputs) for inputs in batches])
    if difference <= tolerance or difference == float("inf"):
        return Comparison(difference, None)
    try:
        # In the layout that runs use, where convolutions sum in another order than in the contiguous layout.
        own = duplicate(original).to(memory_format=torch.channels_last)
        plain = [outputs(own, inputs) for inputs in batches]
        own.double()
        exact = [outputs(own, inputs, torch.float64) for inputs in batches]
    except Exception:  # a network may insist on float32, a device may have no float64
        return Comparison(difference, None)
    return Comparison(difference, (_worst(plain, exact), _worst(made, exact)))


def _worst(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    return max(distance(a, b) for a, b in zip(found, expected, strict=True))


def repeats(module: nn.Module, inputs: Inputs) -> bool:
    """Whether two calls with the same inputs give the same outputs and draw nothing from torch's RNG."""
    before = _random_states(inputs)
    first = outputs(module, inputs)
    drawn = not all(map(torch.equal, before, _random_states(inputs)))
    second = outputs(module, inputs)
    same = all(torch.allclose(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))
    return same and not drawn


def outputs(module: nn.Module, inputs: Inputs, dtype: torch.dtype | None = None) -> list[Tensor]:
    """A module's outputs for copies of the inputs, which it may modify."""

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(dtype, copy=True) if dtype and value.is_floating_point() else value.clone()

    return pytree.tree_leaves(module(*pytree.tree_map(own, inputs)))


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """max |found - expected| / max(1, max |expected|); infinite if shapes differ or a value is not finite."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
            return float("inf")
        if a.numel():
            worst = max(worst, ((b - a).abs().max() / a.abs().max().clamp(min=1)).item())
    return worst


def redrawn(example: Inputs, seed: int, num: int | None) -> Inputs:
    """Inputs like the example's, drawn from a seed: normal floats, and indices from among the example's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        sizes = (num or value.shape[0], *value.shape[1:])
        if value.is_floating_point():
            return torch.randn(sizes, generator=generator).to(value)
        # Only the example knows the range of indices.
        return value[torch.randint(len(value), sizes[:1], generator=generator).to(value.device)]

    return tuple(draw(value) for value in example)


def on_gpus(inputs: Inputs) -> list[torch.device]:
    """The CUDA devices that inputs are on."""
    return list({v.device for v in inputs if isinstance(v, Tensor) and v.device.type == "cuda"})


def _random_states(inputs: Inputs) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in on_gpus(inputs))]
