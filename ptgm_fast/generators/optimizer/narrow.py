"""A 3x3 convolution to one channel, as the last of a grey generator's, on CPUs."""

from __future__ import annotations

from ptgm_fast.generators.optimizer.ir import Program, argument, aten, is_plain_conv, shape


def narrow_convolutions(program: Program) -> int:
    """conv3x3(x) to one channel, padding 1 -> the nine taps as one product, then the sum of their shifted planes.

    y[t] = sum_c W[c, t] x[c], out[p] = sum_t y[t][p + t - 1]. CPU convolutions compute a whole vector of output channels
    and drop all but one; the product drops 7 of 16. Three channels fill a vector well enough to be left alone.
    """
    matched = 0
    for node in program.calls(aten.conv2d.default):
        weight, bias = program.value(node.args[1]), argument(node, 2, "bias")
        if weight is None or len(weight) != 1 or weight.device.type != "cpu":
            continue
        if not is_plain_conv(node, 3, 1) or not all(isinstance(s, int) for s in shape(node)[2:]):
            continue
        height, width = shape(node)[2:]
        taps = weight[0].flatten(1).T.contiguous()[:, :, None, None]
        product = program.emit(
            node, aten.conv2d.default, node.args[0], program.constant(taps, node)
        )
        # Plane by plane: the shifted sums read whole rows.
        planes = program.emit(node, aten.contiguous.default, product)
        padded = program.emit(node, aten.constant_pad_nd.default, planes, [1, 1, 1, 1], 0.0)
        total = (
            None if bias is None else program.emit(node, aten.reshape.default, bias, [1, 1, 1, 1])
        )
        for tap in range(9):
            plane = padded
            row, column = divmod(tap, 3)
            cuts = ((1, tap, 1), (2, row, height), (3, column, width))
            for dim, start, length in cuts:
                plane = program.emit(node, aten.slice.Tensor, plane, dim, start, start + length)
            total = plane if total is None else program.emit(node, aten.add.Tensor, plane, total)
        program.replace(node, total)
        matched += 1
    return matched
