"""Rewrite a frozen generator into an equal, cheaper one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.cbn import ConditionalBatchNormGenerator
from ptgm_fast.generators.contract import Generator
from ptgm_fast.generators.optimizer.bake import bake
from ptgm_fast.generators.optimizer.cost import cost
from ptgm_fast.generators.optimizer.folding import fold_constants
from ptgm_fast.generators.optimizer.fuse import fuse
from ptgm_fast.generators.optimizer.ir import Program
from ptgm_fast.generators.optimizer.layout import channels_last, reshape_views
from ptgm_fast.generators.optimizer.linears import join_linears
from ptgm_fast.generators.optimizer.module import OptimizedModule
from ptgm_fast.generators.optimizer.phases import commute, phase_convolutions
from ptgm_fast.generators.optimizer.trim import trim
from ptgm_fast.generators.optimizer.verify import difference

__all__ = ["PASSES", "Optimized", "PassReport", "optimize"]

GRAPH_PASSES: dict[str, Callable[[Program], int]] = {
    "fold-constants": fold_constants,
    "trim": trim,
    "commute": commute,
    "phases": phase_convolutions,
    "fuse": fuse,
    "join-linears": join_linears,
    "channels-last": channels_last,
}
PASSES = ("bake", *GRAPH_PASSES)


@dataclass(frozen=True)
class PassReport:
    """One pass: how often it matched, multiply-adds and bytes moved an image, before and after."""

    name: str
    matched: int
    multiply_adds: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Optimized:
    """The rewritten module; its passes; the largest difference that was found, relative to max(1, |original|)
    (None without `verify`); inputs that were fixed; and why a module was left as it is."""

    module: nn.Module
    passes: tuple[PassReport, ...]
    difference: float | None
    fixed: tuple[Any, ...] = ()
    left: str | None = None


def optimize(
    module: nn.Module,
    *,
    example: tuple[Any, ...] | None = None,
    verify: bool = True,
    tolerance: float = 1e-5,
    skip: Collection[str] = (),
) -> Optimized:
    """An equal, cheaper copy of a frozen module; the original is not changed.

    example: inputs of `forward`, tensors [N, ...] with N >= 2. The copy takes any N; other sizes are those of the
    example, and inputs that are no tensors (a truncation) become constants, which a call must repeat. A `Generator`
    needs none: its latents and embeddings are drawn from its card, and the copy is a `Generator` as well.
    skip: names of `PASSES` to leave out. Outputs are channels-last.

    verify: compare with the original on random inputs of two batch sizes; a difference beyond
    tolerance * max(1, max |original|) raises ValueError. A module that torch.export cannot trace is returned as a
    copy with its normalised weights baked, and `left` says why. Gradients flow to inputs, not to weights.
    Raises UserError for a module in training mode, missing or empty examples and unknown names in skip.
    """
    _check(module, skip)
    if example is None:
        example = _example(module)
    batches = [a.shape[0] for a in example if isinstance(a, Tensor) and a.dim()]
    if not batches or min(batches) < 2:
        raise UserError(
            "example must hold tensors [N, ...] with N >= 2, such as (latents, classes)"
        )
    fast = _copy(module).requires_grad_(False)
    with torch.no_grad():
        baked = 0 if "bake" in skip else bake(fast)
        try:
            program = Program(fast, example)
        except (
            Exception
        ) as error:  # torch.export raises many kinds; all mean that there is no graph
            return Optimized(
                fast, (), None, left=f"{type(error).__name__}: {str(error).splitlines()[0]}"
            )
        before = cost(program, batches[0])
        reports = [PassReport("bake", baked, (before[0],) * 2, (before[1],) * 2)]
        for name, run in GRAPH_PASSES.items():
            if name in skip:
                continue
            matched = run(program)
            after = cost(program, batches[0])
            reports.append(PassReport(name, matched, (before[0], after[0]), (before[1], after[1])))
            before = after
        reshape_views(program)
        body = OptimizedModule(program.finish(), example)
        found = difference(module, body, example) if verify else None
    if found is not None and not found <= tolerance:
        raise ValueError(
            f"the rewrite differs from the original by {found:.2g}, more than the tolerance {tolerance:.2g}; leave passes out with skip to find the cause"
        )
    result: nn.Module = body
    if isinstance(module, Generator):
        # generate() calls forward: the instance's own comes before its class's.
        result = copy.copy(fast)
        result._modules = {n: m for n, m in fast._modules.items() if n == "embedding"}
        result.add_module("body", body)
        result.__dict__["forward"] = body
    return Optimized(
        result.eval(), tuple(reports), found, tuple(a for a in example if not isinstance(a, Tensor))
    )


def _copy(module: nn.Module) -> nn.Module:
    # Old-style weight norm keeps its last product as an attribute, which deepcopy refuses while it has a history.
    products = [
        v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor)
    ]
    fast = copy.deepcopy(module, {id(v): v.detach().clone() for v in products if not v.is_leaf})
    if isinstance(fast, ConditionalBatchNormGenerator):
        # What freezing wrote by hand, the passes find, and more.
        fast.is_frozen = False
    return fast


def _check(module: nn.Module, skip: Collection[str]) -> None:
    if any(part.training for part in module.modules()):
        raise UserError("optimize needs a frozen module: call module.eval() first")
    if unknown := set(skip) - set(PASSES):
        raise UserError(
            f"skip names no pass: {', '.join(sorted(unknown))}; accepted: {', '.join(PASSES)}"
        )


def _example(module: nn.Module) -> tuple[Any, ...]:
    if not isinstance(module, Generator):
        raise UserError(
            "optimize needs example inputs of a module that is no Generator: pass example=(latents, ...)"
        )
    like = next(module.parameters())
    card = module.card
    return tuple(
        torch.zeros(2, size, dtype=like.dtype, device=like.device)
        for size in (card.latent_dim, card.embedding_dim)
    )
