"""Linears of one input as one product."""

from __future__ import annotations

from collections import defaultdict

import torch

from ptgm_fast.generators.optimizer.ir import Node, Program, argument, aten, shape


def join_linears(program: Program) -> int:
    """linear(c, W_1), linear(c, W_2), ... -> views of linear(c, [W_1; W_2; ...]); returns how many were joined."""
    groups: dict[Node, list[Node]] = defaultdict(list)
    for node in program.calls(aten.linear.default):
        bias = argument(node, 2, "bias")
        if program.value(node.args[1]) is not None and (
            bias is None or program.value(bias) is not None
        ):
            groups[node.args[0]].append(node)
    matched = 0
    for source, nodes in groups.items():
        if len(nodes) < 2:
            continue
        weights = [program.value(n.args[1]) for n in nodes]
        biases = [program.value(argument(n, 2, "bias")) for n in nodes]
        weight = program.constant(torch.cat([w for w in weights if w is not None]), nodes[0])
        bias = None
        if any(b is not None for b in biases):
            filled = [
                w.new_zeros(len(w)) if b is None else b
                for w, b in zip(weights, biases, strict=True)
                if w is not None
            ]
            bias = program.constant(torch.cat(filled), nodes[0])
        product = program.emit(nodes[0], aten.linear.default, source, weight, bias)
        start, last = 0, len(shape(source)) - 1
        for node in nodes:
            end = start + shape(node.args[1])[0]
            node.replace_all_uses_with(
                program.emit(node, aten.slice.Tensor, product, last, start, end)
            )
            start = end
        matched += len(nodes)
    program.graph.eliminate_dead_code()
    return matched
