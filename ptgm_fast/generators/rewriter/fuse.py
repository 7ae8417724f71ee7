"""Per-channel scale, shift, activation, upsampling and residual -> one `cond_norm_act`."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch

from ptgm_fast.generators.rewriter.ir import (
    FUSED,
    Node,
    Program,
    argument,
    aten,
    is_nearest_2x,
    is_node,
    shape,
)

ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.leaky_relu.default: "leaky_relu",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
}
ARITHMETIC = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor)


class Affine(NamedTuple):
    """U(x) * scale + shift, an op under construction; U as in `cond_norm_act`."""

    x: Node
    scale: Node
    shift: Node
    upsample: bool
    phases: bool


def fuse(program: Program) -> int:
    """Fold norms, convolution biases, activations, upsampling and residual sums; returns how many ops were absorbed."""
    matched = 0
    for node in list(program.graph.nodes):
        if node.op == "call_function" and len(shape(node)) == 4 and node.users:
            new = (
                _affine(program, node)
                or _residual(program, node)
                or _activation(program, node)
                or _upsample(program, node)
            )
            if new is not None:
                node.replace_all_uses_with(new)
                # The number of users decides what may be absorbed next.
                _drop(program, node)
                matched += 1
    program.graph.eliminate_dead_code()
    return matched


def _drop(program: Program, node: Node) -> None:
    stack = [node]
    while stack:
        dead = stack.pop()
        if not dead.users and dead.op in ("call_function", "get_attr") and not dead._erased:
            stack += dead.all_input_nodes
            program.graph.erase_node(dead)


def _plain(program: Program, node: Any, before: Node) -> Affine | None:
    """An affine with a single user: an unfinished cond_norm_act, or a convolution with its bias as the shift."""
    if not is_node(node) or len(node.users) != 1:
        return None
    if node.target is FUSED and node.args[3] is None and node.args[4] == "none":
        x, scale, shift, _, _, upsample, phases, _ = node.args
        return Affine(x, scale, shift, upsample, phases)
    if node.target is aten.conv2d.default:
        bias = argument(node, 2, "bias")
        ones = program.constant(_filled(node, 1), before)
        if bias is None:
            return Affine(node, ones, program.constant(_filled(node, 0), before), False, False)
        bare = program.emit(before, node.target, node.args[0], node.args[1], None, *node.args[3:])
        return Affine(bare, ones, bias, False, False)
    return None


def _filled(like: Node, value: float) -> torch.Tensor:
    """A constant [C], for the channels of an [N, C, H, W]."""
    fake = like.meta["val"]
    return torch.full((fake.shape[1],), float(value), dtype=fake.dtype, device=fake.device)


def _vector(program: Program, value: Any, like: Node, before: Node) -> Node | None:
    """A factor or summand of an [N, C, H, W] as [C] or [N, C]; None if it is not one value per channel."""
    num, channels, *image = shape(like)
    if isinstance(value, (int, float)):
        return program.constant(_filled(like, value), before)
    if not is_node(value) or value.meta["val"].dtype != like.meta["val"].dtype:
        return None
    constant, sizes = program.value(value), shape(value)
    if constant is not None:
        if constant.numel() != 1 and (
            sizes[-3:] != (channels, 1, 1) or constant.numel() != channels
        ):
            return None
        return program.constant(constant.reshape(-1).expand(channels).contiguous(), before)
    # Dynamic sizes can only be compared by name.
    by_channel = len(sizes) == 4 and sizes[1:] == (channels, 1, 1) and str(sizes[0]) == str(num)
    if not by_channel or image == [1, 1]:
        return None
    return program.emit(before, aten.squeeze.dims, value, [2, 3])


def _affine(program: Program, node: Node) -> Node | None:
    emit = program.emit
    found = _norm(program, node) if node.target is operator.getitem else _arithmetic(program, node)
    if found is None:
        return None
    x, scale, shift = found
    inner = _plain(program, x, node)
    if inner is None:
        if scale is None:
            scale = program.constant(_filled(x, 1), node)
        if shift is None:
            shift = program.constant(_filled(x, 0), node)
        return emit(node, FUSED, x, scale, shift, None, "none", False, False, "")
    x, scales, shifts, *sampling = inner
    if scale is not None:
        scales = emit(node, aten.mul.Tensor, scales, scale)
        shifts = emit(node, aten.mul.Tensor, shifts, scale)
    if shift is not None:
        shifts = emit(node, aten.add.Tensor, shifts, shift)
    return emit(node, FUSED, x, scales, shifts, None, "none", *sampling, "")


def _norm(program: Program, node: Node) -> tuple[Node, Node | None, Node | None] | None:
    """Batch norm with running statistics: scale = gain / sqrt(var + eps), shift = bias - mean * scale."""
    norm, output = node.args
    if not is_node(norm) or output != 0:
        return None
    if norm.target is not aten._native_batch_norm_legit_no_training.default:
        return None
    x, *parameters, _, eps = norm.args
    if not program.are_constants(*parameters):
        return None
    gain, bias = (program.value(p) for p in parameters[:2])
    mean, var = (program.tensor(p) for p in parameters[2:])
    # In float64, so that making the rewrite adds no rounding error of its own.
    scale = (var.double() + eps).rsqrt()
    if gain is not None:
        scale = scale * gain
    shift = -mean * scale if bias is None else bias - mean * scale
    return (
        x,
        program.constant(scale.to(var.dtype), node),
        program.constant(shift.to(var.dtype), node),
    )


def _arithmetic(program: Program, node: Node) -> tuple[Node, Node | None, Node | None] | None:
    if node.target not in ARITHMETIC or node.kwargs:
        return None
    a, b = node.args
    pairs = [(a, b)] if node.target in (aten.sub.Tensor, aten.div.Tensor) else [(a, b), (b, a)]
    for x, other in pairs:
        if not is_node(x) or program.value(x) is not None or shape(x) != shape(node):
            continue
        if x.meta["val"].dtype != node.meta["val"].dtype:
            continue
        vector = _vector(program, other, x, node)
        if vector is None:
            continue
        if node.target is aten.mul.Tensor:
            return x, vector, None
        if node.target is aten.add.Tensor:
            return x, None, vector
        if node.target is aten.div.Tensor:
            return x, program.emit(node, aten.reciprocal.default, vector), None
        return x, None, program.emit(node, aten.neg.default, vector)
    return None


def _residual(program: Program, node: Node) -> Node | None:
    """cond_norm_act(x) + r, or conv(x) + r; a nearest 2x upsampling of r is absorbed too."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    a, b = node.args
    if not (is_node(a) and is_node(b)) or shape(a) != shape(b) or a is b:
        return None
    for x, other in sorted(((a, b), (b, a)), key=lambda pair: not is_nearest_2x(pair[1])):
        inner = _plain(program, x, node)
        if inner is not None and a.meta["val"].dtype == b.meta["val"].dtype:
            residual = other.args[0] if is_nearest_2x(other) else other
            return program.emit(node, FUSED, *inner[:3], residual, "none", *inner[3:], "")
    return None


def _activation(program: Program, node: Node) -> Node | None:
    name = ACTIVATIONS.get(node.target)
    x: Node = node.args[0] if node.args else None
    if name is None or (name == "leaky_relu" and argument(node, 1, "negative_slope", 0.01) != 0.2):
        return None
    if not is_node(x) or x.target is not FUSED or len(x.users) > 1 or x.args[4] != "none":
        return None
    return program.emit(node, FUSED, *x.args[:4], name, *x.args[5:])


def _upsample(program: Program, node: Node) -> Node | None:
    x: Node = node.args[0] if node.args else None
    if not is_nearest_2x(node) or not is_node(x) or x.target is not FUSED or len(x.users) > 1:
        return None
    if x.args[3] is not None or x.args[5] or x.args[6]:
        return None
    return program.emit(node, FUSED, *x.args[:5], True, False, "")
