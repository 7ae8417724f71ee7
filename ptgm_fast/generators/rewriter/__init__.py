"""Rewrite a frozen generator into an equal, cheaper one."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.rewriter.bake import bake
from ptgm_fast.generators.rewriter.report import Optimized, PassReport, added
from ptgm_fast.generators.rewriter.rewrite import (
    GRAPH_PASSES,
    OptimizedModule,
    rewrite,
    rewrite_parts,
)
from ptgm_fast.generators.rewriter.verify import difference
from ptgm_fast.models.precision import exact_float32

__all__ = ["PASSES", "Optimized", "PassReport", "optimize"]

PASSES = ("bake", *GRAPH_PASSES)


@torch.no_grad()
@exact_float32()
def optimize(
    module: nn.Module,
    *,
    example: tuple[Any, ...] | None = None,
    truncation: float | None = None,
    verify: bool = True,
    tolerance: float = 1e-5,
    skip: Collection[str] = (),
) -> Optimized:
    """An equal, cheaper copy of a frozen module; the original is not changed.

    example: inputs of `forward`, tensors [N, ...] with N >= 2. The copy takes any N; other sizes are those of the
    example, and inputs that are no tensors (a truncation) become constants: a call with another value raises
    ValueError. A `Generator` brings its own example, and its copy is a `Generator` of the same card.
    truncation: of a `Generator` whose truncation selects statistics, the one that `generate` will be called with.
    skip: names of `PASSES` to leave out. Outputs are channels-last.

    Everything is computed in float32, whatever precision is set outside.
    verify: compare with the original on random inputs of two batch sizes; a difference beyond
    tolerance * max(1, max |original|) raises UserError. Of a module that torch.export cannot trace, the submodules that
    it can are rewritten; `left` and `parts` say so. Gradients flow to inputs, not to weights.
    Raises UserError for a module in training mode, missing or empty examples and unknown names in skip.
    """
    if any(part.training for part in module.modules()):
        raise UserError("optimize needs a frozen module: call module.eval() first")
    if unknown := set(skip) - set(PASSES):
        raise UserError(
            f"skip names no pass: {', '.join(sorted(unknown))}; accepted: {', '.join(PASSES)}"
        )
    fast = _copy(module)
    if example is None:
        if not isinstance(module, Generator):
            raise UserError(
                "optimize needs example inputs of a module that is no Generator: pass example=(latents, ...)"
            )
        try:
            example = module.example(truncation)
        except ValueError as error:
            return _left(fast, str(error), 0 if "bake" in skip else bake(fast))
    batches = [a.shape[0] for a in example if isinstance(a, Tensor) and a.dim()]
    if not batches or min(batches) < 2:
        raise UserError(
            "example must hold tensors [N, ...] with N >= 2, such as (latents, classes)"
        )
    baked = 0 if "bake" in skip else bake(fast)
    left: str | None = None
    parts: tuple[str, ...] = ()
    body: OptimizedModule | None = None
    try:
        body, passes = rewrite(fast, example, skip)
    except Exception as error:  # torch.export raises many kinds; all mean that there is no graph
        left = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        parts, reports = rewrite_parts(fast, example, skip)
        if not parts:
            return _left(fast, left, baked)
        passes = added(reports)
    rewritten: nn.Module = body or fast
    found = difference(module, rewritten, example) if verify else None
    if found is not None and not found <= tolerance:
        raise UserError(
            f"the rewrite differs from the original by {found:.2g}, more than the tolerance {tolerance:.2g}; use the original, raise the tolerance, or leave passes out with skip to find the cause"
        )
    fixed: tuple[Any, ...] = ()
    if body is not None:
        fixed = tuple(a for a in example if not isinstance(a, Tensor))
        if isinstance(module, Generator):
            rewritten = _generator(cast(Generator, fast), body)
    start = replace(passes[0], matched=baked)
    return Optimized(rewritten.eval(), (start, *passes[1:]), found, fixed, left, parts)


def _left(fast: nn.Module, why: str, baked: int) -> Optimized:
    return Optimized(fast, (PassReport("bake", baked, (0, 0), (0, 0)),), None, left=why)


def _generator(original: Generator, body: OptimizedModule) -> Generator:
    """A generator whose `forward` is the body; of its own modules it keeps those that hold the class table."""
    result = copy.copy(original)
    table = original.class_table
    kept = {}
    if table is not None:
        storage = table.untyped_storage().data_ptr()
        for name, child in original.named_children():
            if storage in [p.untyped_storage().data_ptr() for p in child.parameters()]:
                kept[name] = child
    result._modules = dict(kept)
    result.add_module("body", body)
    # generate() calls forward: the instance's own comes before its class's.
    result.__dict__["forward"] = body
    return result


def _copy(module: nn.Module) -> nn.Module:
    # Old-style weight norm keeps its last product as an attribute, which deepcopy refuses while it has a history.
    products = [
        v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor)
    ]
    own = {id(v): v.detach().clone() for v in products if not v.is_leaf}
    return copy.deepcopy(module, own).requires_grad_(False)
