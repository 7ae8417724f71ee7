"""Nearest 2x upsampling before a convolution: computed on the small image."""

from __future__ import annotations

import torch

from ptgm_fast.generators.optimizer.ir import (
    FUSED,
    Program,
    argument,
    aten,
    is_nearest_2x,
    is_node,
    is_plain_conv,
)
from ptgm_fast.kernels.cond_norm_act import phase_weight


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
        weight = program.value(node.args[1])
        assert weight is not None
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
