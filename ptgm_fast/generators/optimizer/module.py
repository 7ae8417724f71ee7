"""The rewritten module as callers see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


class OptimizedModule(nn.Module):
    """A graph of aten and fused ops with the inputs of the original.

    Inputs that were no tensors are constants of the graph: another value raises ValueError. Sizes but the first
    are those of the example.
    """

    def __init__(self, graph: fx.GraphModule, example: tuple[Any, ...]) -> None:
        super().__init__()
        self.graph = graph
        self.fixed = tuple(None if isinstance(a, Tensor) else (a,) for a in example)
        self.sizes = tuple(tuple(a.shape[1:]) if isinstance(a, Tensor) else None for a in example)

    def forward(self, *inputs: Any) -> Any:
        if len(inputs) != len(self.fixed):
            raise ValueError(f"expected {len(self.fixed)} inputs, got {len(inputs)}")
        for given, fixed, sizes in zip(inputs, self.fixed, self.sizes, strict=True):
            if fixed is not None and given != fixed[0]:
                raise ValueError(
                    f"this module was optimised for {fixed[0]!r}, got {given!r}; optimise it again for that"
                )
            if sizes is not None and tuple(given.shape[1:]) != sizes:
                raise ValueError(
                    f"this module was optimised for inputs [N, {', '.join(map(str, sizes))}], got {list(given.shape)}"
                )
        return self.graph(*inputs)
