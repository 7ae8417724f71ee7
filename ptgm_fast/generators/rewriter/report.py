"""Report of a rewrite, and the cost of a program."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ptgm_fast.generators.rewriter.ir import ATTEND, Node, Program, aten, hint, shape

VIEWS = (
    aten.view.default, aten.reshape.default, aten.slice.Tensor, aten.select.int, aten.unsqueeze.default, aten.squeeze.dims,
    aten.permute.default, aten.transpose.int, aten.expand.default, aten.chunk.default, aten.split.Tensor,
)  # fmt: skip


@dataclass(frozen=True)
class PassReport:
    """One pass: how often it matched; multiply-adds and bytes moved per image, before and after."""

    name: str
    matched: int
    multiply_adds: tuple[int, int]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Optimized:
    """A rewritten module and a report of what was done.

    module: equivalent to the original and cheaper. passes: in the order they ran; sums over the parts if the whole could
    not be traced. difference: the largest found, relative to max(1, |original|); None without `verify`. fixed: inputs
    that became constants. left: why `module` is not one graph of the whole; None if it is. parts: the submodules that
    were rewritten instead. errors: of the original and of `module`, with respect to float64; None unless the two differ
    by more than the tolerance.
    """

    module: nn.Module
    passes: tuple[PassReport, ...]
    difference: float | None
    fixed: tuple[Any, ...] = ()
    left: str | None = None
    parts: tuple[str, ...] = ()
    errors: tuple[float, float] | None = None

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Per image, before and after all passes; (0, 0) if nothing was traced."""
        return self.passes[0].multiply_adds[0], self.passes[-1].multiply_adds[1]


def added(reports: list[tuple[PassReport, ...]]) -> tuple[PassReport, ...]:
    """The reports of several parts, summed into one."""

    def total(pairs: list[tuple[int, int]]) -> tuple[int, int]:
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    return tuple(
        PassReport(
            rows[0].name,
            sum(r.matched for r in rows),
            total([r.multiply_adds for r in rows]),
            total([r.bytes for r in rows]),
        )
        for rows in zip(*reports, strict=True)
    )


def cost(program: Program, num_images: int) -> tuple[int, int]:
    """(multiply-adds, bytes of activations and weights read and written) per image, at the example's batch size."""
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
    if node.target is ATTEND:
        queries, keys = node.args[:2]
        return (_numel(queries) + _numel(node)) * hint(shape(keys)[-2])
    if node.target in (aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default):
        return _numel(node) * hint(shape(node.args[0])[-1])
    return 0
