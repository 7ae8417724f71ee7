"""The weights of rewritten graphs, rounded to the precision that autocast computes in."""

from __future__ import annotations

import copy
from collections import defaultdict
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from ptgm_fast.generators.rewriter.ir import Node, aten
from ptgm_fast.generators.rewriter.rewrite import OptimizedModule

Module = TypeVar("Module", bound=nn.Module)
# Autocast rounds all inputs of these ops.
ROUNDING = (
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    aten.linear.default,
    aten.matmul.default,
    aten.bmm.default,
)


def rounded(module: Module, dtype: torch.dtype) -> Module:
    """A module for calls under autocast to `dtype`, with the weights of its rewritten graphs rounded once.

    Autocast would round them at every call, to the same bits: it caches only tensors that require gradients. Weights that
    autocast leaves in float32 stay so, and are shared with `module`, as all other tensors are. Without a rewritten graph,
    returns `module` itself.
    """
    graphs = [part.graph for part in module.modules() if isinstance(part, OptimizedModule)]
    if not graphs:
        return module
    memo: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
    for graph in graphs:
        readers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                readers[str(node.target)] += node.users
        for name, users in readers.items():
            value = getattr(graph, name)
            if value.dtype == torch.float32 and all(user.target in ROUNDING for user in users):
                memo[id(value)] = value.to(dtype)
    return copy.deepcopy(module, memo)
