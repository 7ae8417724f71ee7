"""Trace, run the passes, make a module of the graph again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from ptgm_fast.generators.optimizer.attention import split_attention
from ptgm_fast.generators.optimizer.cost import cost
from ptgm_fast.generators.optimizer.folding import fold_constants
from ptgm_fast.generators.optimizer.fuse import fuse
from ptgm_fast.generators.optimizer.ir import Program
from ptgm_fast.generators.optimizer.layout import channels_last, reshape_views
from ptgm_fast.generators.optimizer.linears import join_linears
from ptgm_fast.generators.optimizer.module import OptimizedModule
from ptgm_fast.generators.optimizer.narrow import narrow_convolutions
from ptgm_fast.generators.optimizer.phases import commute, phase_convolutions
from ptgm_fast.generators.optimizer.report import PassReport
from ptgm_fast.generators.optimizer.trim import trim

GRAPH_PASSES: dict[str, Callable[[Program], int]] = {
    "fold-constants": fold_constants,
    "trim": trim,
    "commute": commute,
    "phases": phase_convolutions,
    "fuse": fuse,
    "narrow": narrow_convolutions,
    "attention": split_attention,
    "join-linears": join_linears,
    "channels-last": channels_last,
}


def rewrite(
    module: nn.Module, example: tuple[Any, ...], skip: Collection[str]
) -> tuple[OptimizedModule, tuple[PassReport, ...]]:
    """The module as a rewritten graph, and what each pass did. Raises what torch.export raises."""
    program = Program(module, example)
    num = next(a.shape[0] for a in example if isinstance(a, Tensor) and a.dim())
    before = cost(program, num)
    # What was baked into the module before it was traced: counted by the caller.
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
