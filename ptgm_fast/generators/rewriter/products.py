"""Cheaper convolutions and Linears: sliced outputs, upsampled inputs, a single output channel, a shared input."""

from __future__ import annotations

from collections import defaultdict

import torch

from ptgm_fast.generators.rewriter.ir import (
    FUSED,
    Node,
    Program,
    argument,
    aten,
    is_nearest_2x,
    is_node,
    is_plain_conv,
    shape,
    slice_bounds,
)
from ptgm_fast.kernels.cond_norm_act import phase_weight


def trim(program: Program) -> int:
    """slice(conv(x, W, b), channels a:e) -> conv(x, W[a:e], b[a:e]), for one group, if nothing else reads the rest."""
    matched = 0
    for node in program.calls(aten.slice.Tensor):
        conv, dim, start, end, step = slice_bounds(node)
        if dim != 1 or step != 1 or conv.target is not aten.conv2d.default or len(conv.users) > 1:
            continue
        weight, bias = conv.args[1], argument(conv, 2, "bias")
        if argument(conv, 6, "groups", 1) != 1 or not program.are_constants(weight, bias):
            continue
        parts = [
            None if c is None else program.emit(node, aten.slice.Tensor, c, 0, start, end)
            for c in (weight, bias)
        ]
        program.replace(node, program.emit(node, conv.target, conv.args[0], *parts, *conv.args[3:]))
        matched += 1
    return matched


def commute(program: Program) -> int:
    """conv1x1(up(x)) -> up(conv1x1(x)): a quarter of the multiply-adds."""
    matched = 0
    for node in program.calls(aten.conv2d.default):
        up = node.args[0]
        if is_plain_conv(node, 1, 0) and is_nearest_2x(up) and len(up.users) == 1:
            small = program.emit(node, node.target, up.args[0], *node.args[1:])
            program.replace(node, program.emit(node, up.target, small, *up.args[1:]))
            matched += 1
    return matched


def phase_convolutions(program: Program) -> int:
    """conv3x3(up(x)), padding 1 -> 2x2 convolution of x with `phase_weight`, interleaved by `cond_norm_act`: 4/9 of the
    multiply-adds. The bias goes into the shift, and a following norm and activation join the interleave (`fuse`)."""
    matched = 0
    for node in program.calls(aten.conv2d.default):
        if not is_plain_conv(node, 3, 1) or not is_nearest_2x(node.args[0]):
            continue
        weight = program.tensor(node.args[1])
        bias = argument(node, 2, "bias")
        phase = program.constant(phase_weight(weight), node)
        ones = program.constant(weight.new_ones(len(weight)), node)
        shift = (
            bias if is_node(bias) else program.constant(torch.zeros_like(weight[:, 0, 0, 0]), node)
        )
        small = program.emit(
            node, aten.conv2d.default, node.args[0].args[0], phase, None, [1, 1], [1, 1]
        )
        program.replace(
            node, program.emit(node, FUSED, small, ones, shift, None, "none", False, True, "")
        )
        matched += 1
    return matched


def narrow_convolutions(program: Program) -> int:
    """conv3x3(x) to one channel, padding 1, on CPUs -> the nine taps as one product, then the sum of their shifted planes.

    y[t] = sum_c W[c, t] x[c], out[p] = sum_t y[t][p + t - 1]. This is the last layer of a grayscale generator: CPU
    convolutions compute a whole vector of output channels and discard all but one; the product discards 7 of 16. Three
    channels fill a vector well enough to be left alone.
    """
    matched = 0
    for node in program.calls(aten.conv2d.default):
        weight, bias = program.value(node.args[1]), argument(node, 2, "bias")
        if weight is None or len(weight) != 1 or weight.device.type != "cpu":
            continue
        if not is_plain_conv(node, 3, 1) or not all(isinstance(s, int) for s in shape(node)[2:]):
            continue
        height, width = shape(node)[2:]
        taps = program.constant(weight[0].flatten(1).T.contiguous()[:, :, None, None], node)
        product = program.emit(node, aten.conv2d.default, node.args[0], taps)
        # One plane after another, so that the shifted sums read whole rows.
        planes = program.emit(node, aten.contiguous.default, product)
        padded = program.emit(node, aten.constant_pad_nd.default, planes, [1, 1, 1, 1], 0.0)
        total = (
            None if bias is None else program.emit(node, aten.reshape.default, bias, [1, 1, 1, 1])
        )
        for tap in range(9):
            plane = padded
            row, column = divmod(tap, 3)
            for dim, start, length in ((1, tap, 1), (2, row, height), (3, column, width)):
                plane = program.emit(node, aten.slice.Tensor, plane, dim, start, start + length)
            total = plane if total is None else program.emit(node, aten.add.Tensor, plane, total)
        program.replace(node, total)
        matched += 1
    return matched


def join_linears(program: Program) -> int:
    """linear(c, W_1), linear(c, W_2), ... -> views of linear(c, [W_1; W_2; ...]); returns how many were joined."""
    groups: dict[Node, list[Node]] = defaultdict(list)
    for node in program.calls(aten.linear.default):
        if program.are_constants(node.args[1], argument(node, 2, "bias")):
            groups[node.args[0]].append(node)
    matched = 0
    for source, nodes in groups.items():
        if len(nodes) < 2:
            continue
        weights = [program.tensor(n.args[1]) for n in nodes]
        biases = [program.value(argument(n, 2, "bias")) for n in nodes]
        weight = program.constant(torch.cat(weights), nodes[0])
        bias = None
        if any(b is not None for b in biases):
            filled = [
                w.new_zeros(len(w)) if b is None else b
                for w, b in zip(weights, biases, strict=True)
            ]
            bias = program.constant(torch.cat(filled), nodes[0])
        product = program.emit(nodes[0], aten.linear.default, source, weight, bias)
        start, last = 0, len(shape(source)) - 1
        for node, rows in zip(nodes, weights, strict=True):
            end = start + len(rows)
            part = program.emit(node, aten.slice.Tensor, product, last, start, end)
            node.replace_all_uses_with(part)
            start = end
        matched += len(nodes)
    program.graph.eliminate_dead_code()
    return matched
