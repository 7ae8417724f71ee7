"""Constant folding: truncation statistics, reciprocal deviations, transposes."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ptgm_fast.generators.rewriter.ir import Node, Program, aten, shape, slice_bounds


def fold_constants(program: Program) -> int:
    """Replace calls whose inputs are all constants by their value, and drop no-op slices."""
    matched = 0
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        inputs = node.all_input_nodes
        if inputs and program.are_constants(*inputs):
            args, kwargs = fx.map_arg((node.args, node.kwargs), program.value)
            new = program.constant(node.target(*args, **kwargs), node)
        elif node.target is aten.slice.Tensor and _keeps_all(node):
            new = node.args[0]
        else:
            continue
        node.replace_all_uses_with(new)
        matched += 1
    program.graph.eliminate_dead_code()
    return matched


def _keeps_all(node: Node) -> bool:
    source, dim, start, end, step = slice_bounds(node)
    size = shape(source)[dim]
    whole: bool = (
        end is None
        or end == torch.iinfo(torch.int64).max
        or (isinstance(size, int) and isinstance(end, int) and end >= size)
    )
    return start in (None, 0) and step == 1 and whole
