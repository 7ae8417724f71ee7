"""Channels-last throughout."""

from __future__ import annotations

import torch

from ptgm_fast.generators.rewriter.ir import FUSED, Program, argument, aten, shape


def channels_last(program: Program) -> int:
    """Lay out convolution weights channels-last, and drop copies that only made images channels-first.

    Views of images become reshapes, since the memory order is not the one that the module's author assumed.
    Returns the number of weights and copies changed.
    """
    matched = 0
    for node in program.calls(aten.conv2d.default, aten.conv_transpose2d.input):
        weight = program.value(node.args[1])
        if weight is not None:
            laid = program.constant(weight.contiguous(memory_format=torch.channels_last), node)
            node.update_arg(1, laid)
            matched += 1
    for node in program.calls(aten.clone.default, aten.contiguous.default):
        readers = {user.target for user in node.users}
        contiguous = (
            argument(node, 1, "memory_format", torch.contiguous_format) == torch.contiguous_format
        )
        if (
            contiguous
            and len(shape(node)) == 4
            and readers <= {aten.conv2d.default, FUSED, aten.slice.Tensor}
        ):
            node.replace_all_uses_with(node.args[0])
            matched += 1
    program.graph.eliminate_dead_code()
    return matched


def reshape_views(program: Program) -> None:
    for node in program.calls(aten.view.default):
        node.target = aten.reshape.default
