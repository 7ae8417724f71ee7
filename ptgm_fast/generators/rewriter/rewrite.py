"""Trace a module, run the passes, turn the graph back into a module: for the whole, or for its submodules one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

from torch import Tensor, fx, nn

from ptgm_fast.generators.rewriter.affine import fold_affine
from ptgm_fast.generators.rewriter.attention import attention
from ptgm_fast.generators.rewriter.folding import fold_constants
from ptgm_fast.generators.rewriter.fuse import fuse
from ptgm_fast.generators.rewriter.ir import Program
from ptgm_fast.generators.rewriter.layout import channels_last, reshape_views
from ptgm_fast.generators.rewriter.products import (
    commute,
    join_linears,
    narrow_convolutions,
    phase_convolutions,
    trim,
)
from ptgm_fast.generators.rewriter.report import PassReport, cost

GRAPH_PASSES: dict[str, Callable[[Program], int]] = {
    "fold-constants": fold_constants,
    "trim": trim,
    "commute": commute,
    "phases": phase_convolutions,
    "fuse": fuse,
    "narrow": narrow_convolutions,
    "attention": attention,
    "fold-affine": fold_affine,
    "join-linears": join_linears,
    "channels-last": channels_last,
}


class OptimizedModule(nn.Module):
    """A graph of aten and fused ops with the inputs of the original.

    Inputs that were not tensors are constants of the graph: another value raises ValueError. All sizes but the first
    are fixed to those of the example.
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
                    f"this module was optimized for {fixed[0]!r}, got {given!r}; optimize it again for that"
                )
            if sizes is not None and tuple(given.shape[1:]) != sizes:
                raise ValueError(
                    f"this module was optimized for inputs [N, {', '.join(map(str, sizes))}], got {list(given.shape)}"
                )
        return self.graph(*inputs)


def num_samples(example: tuple[Any, ...]) -> int:
    return next(a.shape[0] for a in example if isinstance(a, Tensor) and a.dim())


def rewrite(
    module: nn.Module, example: tuple[Any, ...], skip: Collection[str]
) -> tuple[OptimizedModule, tuple[PassReport, ...]]:
    """The module as a rewritten graph, and what each pass did. Raises what torch.export raises."""
    program = Program(module, example)
    num = num_samples(example)
    before = cost(program, num)
    # Baking happens before tracing and is counted by the caller.
    reports = [PassReport("bake", 0, (before[0],) * 2, (before[1],) * 2)]
    for name, run in GRAPH_PASSES.items():
        if name in skip:
            continue
        matched = run(program)
        after = cost(program, num)
        reports.append(PassReport(name, matched, (before[0], after[0]), (before[1], after[1])))
        before = after
    reshape_views(program)
    return OptimizedModule(program.finish(), example), tuple(reports)


def rewrite_parts(
    module: nn.Module, example: tuple[Any, ...], skip: Collection[str]
) -> tuple[tuple[str, ...], list[tuple[PassReport, ...]]]:
    """Replace, in place, the largest submodules that can be traced; returns their names and what the passes did.

    A submodule is tried if the example calls it once, with only tensors [N, ...]: then no input can become a constant
    for which a later call needs another value. Its sizes other than N are fixed to those of the example.
    """
    num = num_samples(example)
    calls: dict[str, list[tuple[Any, ...] | None]] = {}

    def recorder(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            fits = not kwargs and all(
                isinstance(a, Tensor) and a.dim() and len(a) == num for a in args
            )
            calls.setdefault(name, []).append(args if fits and args else None)

        return record

    with ExitStack() as stack:
        for name, child in module.named_modules():
            if name:
                handle = child.register_forward_pre_hook(recorder(name), with_kwargs=True)
                stack.callback(handle.remove)
        module(*example)
    names: list[str] = []
    reports = []
    for name, child in list(module.named_modules()):
        inside = any(name.startswith(done + ".") for done in names)
        # A single layer contains no pattern.
        if not name or inside or not list(child.children()):
            continue
        (*earlier, args) = calls.get(name, [None])
        if earlier or args is None:
            continue
        try:
            body, passes = rewrite(child, args, skip)
        except Exception:  # torch.export raises many types; all mean that there is no graph
            continue
        if any(p.matched for p in passes):
            module.set_submodule(name, body)
            names.append(name)
            reports.append(passes)
    return tuple(names), reports
