"""What a program costs: multiply-adds an image, and bytes that its ops read and write."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ptgm_fast.generators.optimizer.ir import Node, Program, aten, hint, shape

VIEWS = (
    aten.view.default, aten.reshape.default, aten.slice.Tensor, aten.select.int, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.transpose.int, aten.expand.default, aten.chunk.default, aten.split.Tensor,
)  # fmt: skip


def cost(program: Program, num_images: int) -> tuple[int, int]:
    """(multiply-adds, bytes of activations and weights read and written), an image, at the example's batch size."""
    adds = moved = 0
    for node in program.graph.nodes:
        if (
            node.op != "call_function"
            or node.target in VIEWS
            or not isinstance(node.meta.get("val"), Tensor)
        ):
            continue
        adds += _multiply_adds(node)
        moved += sum(_bytes(n) for n in [node, *node.all_input_nodes])
    return adds // num_images, moved // num_images


def _numel(node: Any) -> int:
    return math.prod(hint(s) for s in shape(node))


def _bytes(node: Node) -> int:
    value = node.meta.get("val")
    return _numel(node) * value.element_size() if isinstance(value, Tensor) else 0


def _multiply_adds(node: Node) -> int:
    if node.target is aten.conv2d.default:
        return _numel(node) * _numel(node.args[1]) // hint(shape(node.args[1])[0])
    if node.target is aten.conv_transpose2d.input:
        return _numel(node.args[0]) * _numel(node.args[1]) // hint(shape(node.args[1])[0])
    if node.target in (aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default):
        return _numel(node) * hint(shape(node.args[0])[-1])
    return 0
