"""Folding the arithmetic between a Linear and what it scales into the Linear's weights."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptgm_fast.generators.rewriter.ir import (
    Node,
    Program,
    argument,
    aten,
    is_node,
    on_gpu,
    shape,
    slice_bounds,
)

SAME = (aten.unsqueeze.default, aten.squeeze.dims)


class Linear(NamedTuple):
    """source [N, D] -> source @ weight.T + bias, [N, C]; in float64."""

    source: Node
    weight: Tensor
    bias: Tensor


def fold_affine(program: Program) -> int:
    """On GPUs: sums and products of Linears of one input with constants -> one Linear each, for `join_linears`.

    s (1 + W c) -> s + (s W) c, and t (1 + W c) + V c -> t + (t W + V) c: this removes a conditional norm's four small
    kernels per layer. On CPUs, where their time is negligible, they are kept. Only done if it adds no rows; returns how
    many Linears it made.
    """
    found: dict[Node, Linear] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and (linear := _linear(program, node, found)):
            found[node] = linear
    matched = 0
    for source in dict.fromkeys(linear.source for linear in found.values()):
        group = [n for n, linear in found.items() if linear.source is source]
        plain = [n for n in group if n.target is aten.linear.default]
        made = [n for n in group if n not in plain and len(shape(n)) == 2 and _is_read(n, found)]
        kept = [n for n in plain if _is_read(n, found)]
        if not made or _rows(made) + _rows(kept) > _rows(plain) or not on_gpu(made[0]):
            continue
        for node in made:
            _, weight, bias = found[node]
            dtype = node.meta["val"].dtype
            constants = (program.constant(c.to(dtype), node) for c in (weight, bias))
            new = program.emit(node, aten.linear.default, source, *constants)
            node.replace_all_uses_with(new)
        program.graph.eliminate_dead_code()
        matched += len(made)
    return matched


def _rows(nodes: list[Node]) -> int:
    return sum(shape(n)[1] for n in nodes)


def _is_read(node: Node, found: dict[Node, Linear]) -> bool:
    """Whether anything other than the folded arithmetic needs the values of an [N, C]."""
    return any(
        user not in found or (len(shape(user)) != 2 and _is_read(user, found))
        for user in node.users
    )


def _linear(program: Program, node: Node, found: dict[Node, Linear]) -> Linear | None:
    """A node as a Linear, if it is one, a part of one, one in another shape, or arithmetic on one."""
    if node.target is aten.linear.default:
        bias = argument(node, 2, "bias")
        if len(shape(node)) != 2 or not program.are_constants(node.args[1], bias):
            return None
        weight = program.tensor(node.args[1]).double()
        shift = program.value(bias)
        zeros = torch.zeros_like(weight[:, 0])
        return Linear(node.args[0], weight, zeros if shift is None else shift.double())
    inner = found.get(node.args[0]) if node.args and is_node(node.args[0]) else None
    if node.target in SAME:
        # [N, C] with trailing dimensions of size one.
        fits = set(shape(node)[2:]) <= {1} and len(shape(node)) >= 2
        return inner if fits and shape(node)[1:2] == shape(node.args[0])[1:2] else None
    if node.target is aten.split.Tensor:
        return inner if argument(node, 2, "dim", 0) in (1, -1) else None
    if node.target is operator.getitem and inner and node.args[0].target is aten.split.Tensor:
        size, index = node.args[0].args[1], node.args[1]
        return _part(inner, index * size, (index + 1) * size)
    if node.target is aten.slice.Tensor:
        _, dim, start, end, step = slice_bounds(node)
        fits = len(shape(node)) == 2 and dim in (1, -1) and step == 1
        return _part(inner, start, end) if inner and fits else None
    return _arithmetic(program, node, found) if len(shape(node)) == 2 else None


def _part(linear: Linear, start: int | None, end: int | None) -> Linear:
    return Linear(linear.source, linear.weight[start:end], linear.bias[start:end])


def _arithmetic(program: Program, node: Node, found: dict[Node, Linear]) -> Linear | None:
    if node.target is aten.neg.default and node.args[0] in found:
        source, weight, bias = found[node.args[0]]
        return Linear(source, -weight, -bias)
    if node.target not in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        return None
    if node.kwargs:
        return None
    one, other = (_operand(program, a, node, found) for a in node.args)
    if node.target is aten.sub.Tensor:
        other = _negative(other)
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        if isinstance(one, Linear) and isinstance(other, Linear):
            same = one.source is other.source
            both = Linear(one.source, one.weight + other.weight, one.bias + other.bias)
            return both if same else None
        linear, summand = (one, other) if isinstance(one, Linear) else (other, one)
        if isinstance(linear, Linear) and isinstance(summand, Tensor):
            return Linear(linear.source, linear.weight, linear.bias + summand)
        return None
    if node.target is aten.div.Tensor:
        other = 1 / other if isinstance(other, Tensor) else None
    linear, factor = (one, other) if isinstance(one, Linear) else (other, one)
    if isinstance(linear, Linear) and isinstance(factor, Tensor):
        return Linear(linear.source, linear.weight * factor[:, None], linear.bias * factor)
    return None


def _operand(
    program: Program, given: Any, node: Node, found: dict[Node, Linear]
) -> Linear | Tensor | None:
    """A Linear of the result's shape, or a constant with one value per column, float64 [C]."""
    columns = shape(node)[1]
    if isinstance(given, (int, float)):
        like = node.meta["val"]
        return torch.full((columns,), float(given), dtype=torch.float64, device=like.device)
    if not is_node(given) or given.meta["val"].dtype != node.meta["val"].dtype:
        return None
    constant = program.value(given)
    if constant is not None:
        if shape(given) not in ((), (1,), (1, 1), (columns,), (1, columns)):
            return None
        return constant.double().reshape(-1).expand(columns)
    linear = found.get(given)
    return linear if linear is not None and shape(given)[1:] == (columns,) else None


def _negative(value: Linear | Tensor | None) -> Linear | Tensor | None:
    if isinstance(value, Linear):
        return Linear(value.source, -value.weight, -value.bias)
    return None if value is None else -value
