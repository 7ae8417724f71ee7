"""Rewrite a frozen generator into an equivalent, cheaper one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.rewriter.bake import bake, duplicate
from ptgm_fast.generators.rewriter.report import Optimized, PassReport, added
from ptgm_fast.generators.rewriter.rewrite import (
    GRAPH_PASSES,
    OptimizedModule,
    rewrite,
    rewrite_parts,
)
from ptgm_fast.generators.rewriter.verify import (
    Comparison,
    compare,
    on_gpus,
    redrawn,
    repeats,
)
from ptgm_fast.models.precision import exact_float32

__all__ = ["PASSES", "Optimized", "PassReport", "optimize"]

PASSES = ("bake", *GRAPH_PASSES)
OFF = "--no-optimize (source.optimize=false) keeps the original without trying"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


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
    on_notice: Callable[[str], None] = _warn,
) -> Optimized:
    """Return an equivalent, cheaper copy of a frozen module; the original is not changed.

    example: inputs of `forward`, tensors [N, ...] with N >= 2. The copy takes any N; other sizes are fixed to those of
    the example, and inputs that are not tensors (a truncation) become constants: a call with another value raises
    ValueError. A `Generator` brings its own example, and its copy is a `Generator` with the same card.
    truncation: for a `Generator` whose truncation selects statistics, the value that `generate` will be called with.
    skip: names of `PASSES` to leave out. Outputs are channels-last.

    Everything is computed in float32, whatever precision is set outside.
    verify: compare with the original on two batches: a `Generator` on inputs as in a run, any other module on normally
    distributed inputs. The copy must be within tolerance * max(1, max |original|) of the original, or at most twice as
    far from float64 as the original is. Otherwise, and if the original draws random numbers, so that nothing can be
    compared, the result's `module` is an unchanged copy. If torch.export cannot trace the module, the submodules that it
    can trace are rewritten. `left` and `parts` report this, and on_notice(message) is called with one line; by default, a
    warning. Gradients flow to inputs, not to weights.
    Raises UserError for a module in training mode, missing or empty examples, and unknown names in skip.
    """
    if any(part.training for part in module.modules()):
        raise UserError("optimize needs a frozen module: call module.eval() first")
    if unknown := set(skip) - set(PASSES):
        raise UserError(
            f"skip has unknown passes: {', '.join(sorted(unknown))}; accepted: {', '.join(PASSES)}"
        )
    own = module if isinstance(module, Generator) and example is None else None
    if example is None:
        if own is None:
            raise UserError(
                "optimize needs example inputs for a module that is not a Generator: pass example=(latents, ...)"
            )
        try:
            example = own.example(truncation)
        except ValueError as error:
            on_notice(f"the generator is used as it is: {error}. {OFF}")
            fast = duplicate(module)
            return _left(fast, str(error), 0 if "bake" in skip else bake(fast))
    batches = [a.shape[0] for a in example if isinstance(a, Tensor) and a.dim()]
    if not batches or min(batches) < 2:
        raise UserError(
            "example must hold tensors [N, ...] with N >= 2, such as (latents, classes)"
        )

    def kept(why: str) -> Optimized:
        on_notice(f"the generator is used as it is: {why}. {OFF}")
        return _left(duplicate(module), why, 0)

    # Preserve the caller's RNG state.
    with torch.random.fork_rng(on_gpus(example), enabled=verify):
        if verify and not repeats(module, example):
            return kept(
                "it draws random numbers in forward, so that no rewrite can be compared with it"
            )
        fast = duplicate(module)
        baked = 0 if "bake" in skip else bake(fast)
        left: str | None = None
        parts: tuple[str, ...] = ()
        body: OptimizedModule | None = None
        try:
            body, passes = rewrite(fast, example, skip)
        except (
            Exception
        ) as error:  # torch.export raises many types; all mean that there is no graph
            left = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            parts, reports = rewrite_parts(fast, example, skip)
            instead = f"rewritten instead: {', '.join(parts)}" if parts else "used as it is"
            on_notice(f"the generator cannot be traced as a whole ({left}); {instead}. {OFF}")
            if not parts:
                return _left(fast, left, baked)
            passes = added(reports)
        rewritten: nn.Module = body or fast
        found: Comparison | None = None
        if verify:
            inputs = [
                own.example(truncation, num=num, seed=seed) if own else redrawn(example, seed, num)
                for seed, num in enumerate((batches[0], 3))
            ]
            try:
                found = compare(module, rewritten, inputs, tolerance)
            except Exception as error:
                return kept(f"its rewrite fails ({type(error).__name__}: {error})")
            if not found.accepts(tolerance):
                return kept(f"its rewrite {found} (tolerance {tolerance:.2g})")
    fixed: tuple[Any, ...] = ()
    if body is not None:
        fixed = tuple(a for a in example if not isinstance(a, Tensor))
        if isinstance(module, Generator):
            rewritten = _generator(cast(Generator, fast), body)
    start = replace(passes[0], matched=baked)
    passes = (start, *passes[1:])
    difference, errors = (found.difference, found.errors) if found else (None, None)
    return Optimized(rewritten.eval(), passes, difference, fixed, left, parts, errors)


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
    # generate() calls forward: the instance's own takes precedence over its class's.
    result.__dict__["forward"] = body
    return result
