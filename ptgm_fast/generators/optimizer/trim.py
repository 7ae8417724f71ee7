"""Output channels of a convolution that are sliced away are not computed."""

from __future__ import annotations

from ptgm_fast.generators.optimizer.ir import Program, argument, aten, slice_bounds


def trim(program: Program) -> int:
    """slice(conv(x, W, b), channels a:e) -> conv(x, W[a:e], b[a:e]), for one group and no other reader of the rest."""
    matched = 0
    for node in program.calls(aten.slice.Tensor):
        conv, dim, start, end, step = slice_bounds(node)
        if dim != 1 or step != 1 or conv.target is not aten.conv2d.default or len(conv.users) > 1:
            continue
        weight, bias = program.value(conv.args[1]), argument(conv, 2, "bias")
        if (
            weight is None
            or argument(conv, 6, "groups", 1) != 1
            or (bias is not None and program.value(bias) is None)
        ):
            continue
        parts = [
            None if c is None else program.emit(node, aten.slice.Tensor, c, 0, start, end)
            for c in (conv.args[1], bias)
        ]
        program.replace(node, program.emit(node, conv.target, conv.args[0], *parts, *conv.args[3:]))
        matched += 1
    return matched
