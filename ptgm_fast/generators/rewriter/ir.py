"""A frozen module as a graph of aten ops, and how the passes read and write it."""

from __future__ import annotations

import inspect
import io
import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from ptgm_fast.kernels import cond_norm_act as _registers_the_op  # noqa: F401

aten = torch.ops.aten
# fx types a node's arguments as a union of everything a graph can hold; narrowing each would clutter the passes.
Node: TypeAlias = Any
ATTEND = aten.scaled_dot_product_attention.default
FUSED = torch.ops.ptgm_fast.cond_norm_act.default


class Program:
    """A traced module. Constants are buffers of `module`; every node carries a fake tensor as ``meta["val"]``."""

    def __init__(self, module: nn.Module, example: tuple[Any, ...]) -> None:
        """Trace in evaluation mode; the first dimension of tensor inputs is dynamic. Raises what torch.export raises."""
        free = tuple(
            {0: torch.export.Dim.DYNAMIC} if isinstance(a, Tensor) else None for a in example
        )
        with _quiet():
            exported = torch.export.export(
                module, example, dynamic_shapes=(free,) if _variadic(module) else free, strict=False
            )
            traced: fx.GraphModule = exported.run_decompositions({}).module(check_guards=False)
        self.root: nn.Module = nn.Module()
        self.graph = traced.graph
        self.fake_mode = next(
            v.fake_mode
            for n in self.graph.nodes
            if isinstance(v := n.meta.get("val"), torch._subclasses.FakeTensor)
        )
        self._count = 0
        for node in list(self.graph.nodes):
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(traced).detach()
                node.target = self._keep(value)
                node.meta["val"] = self.fake_mode.from_tensor(value, static_shapes=True)
        # The owner of the graph, where its checks look for the constants.
        self.root = fx.GraphModule(self.root, self.graph)
        self.graph = self.root.graph

    def _keep(self, value: Tensor) -> str:
        name = f"constant_{self._count}"
        self._count += 1
        self.root.register_buffer(name, value)
        return name

    def calls(self, *targets: Any) -> list[Node]:
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in targets]

    def value(self, node: Any) -> Tensor | None:
        """The tensor of a constant; None for other nodes."""
        is_constant = is_node(node) and node.op == "get_attr"
        return getattr(self.root, str(node.target)) if is_constant else None

    def tensor(self, node: Any) -> Tensor:
        value = self.value(node)
        assert value is not None
        return value

    def are_constants(self, *nodes: Any) -> bool:
        """Whether each is a constant or None."""
        return all(n is None or self.value(n) is not None for n in nodes)

    def constant(self, value: Tensor, before: Node) -> Node:
        with self.graph.inserting_before(before):
            node = self.graph.create_node("get_attr", self._keep(value))
        node.meta["val"] = self.fake_mode.from_tensor(value, static_shapes=True)
        return node

    def emit(self, before: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Insert a call of an op before a node, with its shape; evaluated right away if all its inputs are constants."""
        inputs = [a for a in args if is_node(a)]
        if inputs and self.are_constants(*inputs):
            return self.constant(
                target(*(self.value(a) if is_node(a) else a for a in args), **kwargs), before
            )
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs)
        with self.fake_mode:
            node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]), **kwargs)
        return node

    def replace(self, old: Node, new: Node) -> None:
        old.replace_all_uses_with(new)
        self.graph.eliminate_dead_code()

    def finish(self) -> fx.GraphModule:
        self.graph.eliminate_dead_code()
        used = {n.target for n in self.graph.nodes if n.op == "get_attr"}
        for name in [name for name, _ in self.root.named_buffers() if name not in used]:
            delattr(self.root, name)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export: besides raising the error, it logs it and prints the partial graph, for every part tried."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _variadic(module: nn.Module) -> bool:
    code = getattr(module.forward, "__code__", None)
    return code is not None and code.co_flags & inspect.CO_VARARGS != 0


def is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def slice_bounds(node: Node) -> tuple[Node, int, int | None, int | None, int]:
    """What aten.slice.Tensor cuts: (input, dim, start, end, step)."""
    given = list(node.args)
    source, dim, start, end, step = given + [None, 0, None, None, 1][len(given) :]
    return source, dim, start, end, step


def shape(node: Any) -> tuple[Any, ...]:
    value = node.meta.get("val") if is_node(node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def on_gpu(node: Node) -> bool:
    return bool(node.meta["val"].device.type == "cuda")


def hint(size: Any) -> int:
    """A size as in the example inputs, without specializing the graph to it."""
    return int(size.node.hint or 0) if isinstance(size, torch.SymInt) else int(size)


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def is_nearest_2x(node: Any) -> bool:
    up = (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
    if not is_node(node) or node.target not in up:
        return False
    before, after = shape(node.args[0])[2:], shape(node)[2:]
    # The example's sizes are not enough: the graph must be right for every size that it was traced for.
    fixed = all(isinstance(s, int) for s in (*before, *after))
    return fixed and after == tuple(2 * s for s in before)


def is_plain_conv(node: Any, kernel: int, padding: int) -> bool:
    """A conv2d with a constant square weight, stride 1, dilation 1, one group."""
    if not is_node(node) or node.target is not aten.conv2d.default:
        return False
    options = ((3, "stride", 1, 1), (4, "padding", 0, padding), (5, "dilation", 1, 1))
    return (
        node.args[1].op == "get_attr"
        and shape(node.args[1])[2:] == (kernel, kernel)
        and all(
            set(_pair(argument(node, i, name, default))) == {wanted}
            for i, name, default, wanted in options
        )
        and argument(node, 6, "groups", 1) == 1
    )


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
