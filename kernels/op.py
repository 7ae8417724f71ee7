"""`Op` builds a ``torch.library`` op from a schema, a fake kernel and a reference; it picks an implementation per call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from . import dispatch

Result = TypeVar("Result")
_LIBRARY = torch.library.Library("ptgm_fast", "FRAGMENT")
# Tensor types for which an op may bypass torch's dispatcher.
ORDINARY = frozenset({Tensor, torch.nn.Parameter})
_FLOAT64 = "it computes in float32; float64 needs 'reference'"


class Op(Generic[Result]):
    """``ptgm_fast::NAME(..., str impl)``: eager calls go straight to an implementation, traced calls go through torch.

    schema: ``NAME(arguments) -> results``. Every implementation in the op's folder has a function NAME that takes these
    arguments. The device is that of the first tensor, or the argument ``device`` if there is one.
    fake(*arguments): the results without data, with their shapes, dtypes and strides.
    differentiable: names of the tensors that receive a gradient, by autograd through the reference; if there are none,
    the op has no gradient unless it has its own.
    own_gradient: a subclass defines its own `_setup` and `_backward`.
    """

    def __init__(
        self,
        schema: str,
        fake: Callable[..., Any],
        *,
        differentiable: tuple[str, ...] = (),
        own_gradient: bool = False,
    ) -> None:
        parsed = torch._C.parse_schema(schema)
        names = [a.name for a in parsed.arguments]
        types = [str(a.type) for a in parsed.arguments]
        self.name: str = parsed.name
        # Several ops may share a folder, so it is taken from the module that defines `fake`.
        self.folder = fake.__module__.rpartition(".")[2]
        self._tensors = [i for i, kind in enumerate(types) if "Tensor" in kind]
        self._leaves = [names.index(name) for name in differentiable]
        self._dtype = names.index("dtype") if "dtype" in names else None
        self._device = names.index("device" if "device" in names else names[types.index("Tensor")])
        self._device_is_given = "device" in names
        self._has_gradient = bool(differentiable)
        self._functions: dict[tuple[str, str | None, bool], Callable[..., Result]] = {}
        head, result = schema.rsplit(") -> ", 1)
        self.op = self._register(f"{head}, str impl) -> {result}", self.kernel, self._fake(fake))
        if differentiable:
            self._register_backward(head, len(parsed.returns))
        if differentiable or own_gradient:
            torch.library.register_autograd(
                f"ptgm_fast::{self.name}", self._backward, setup_context=self._setup, lib=_LIBRARY
            )

    def __call__(self, *args: Any, impl: str | None = None) -> Result:
        # A single pass over the tensors: this runs on every call, and a small batch takes only a few microseconds.
        through_torch, double = dispatch.is_tracing(), False
        wants = self._has_gradient and torch.is_grad_enabled()
        for i in self._tensors:
            tensor = args[i]
            if tensor is not None:
                if type(tensor) not in ORDINARY or (wants and tensor.requires_grad):
                    through_torch = True
                if tensor.dtype is torch.float64:
                    double = True
        if through_torch:
            made: Result = self.op(*args, impl or "")
            return made
        if self._dtype is not None and args[self._dtype] is torch.float64:
            double = True
        where = args[self._device]
        if not self._device_is_given:
            # `device.type` alone costs 0.4 us.
            key = ("cpu" if where.is_cpu else where.device.type, impl, double)
        else:
            key = (where.type, impl, double)
        return (self._functions.get(key) or self.function(*key))(*args)

    def kernel(self, *args: Any) -> Any:
        """Run the implementation named by the last argument, or the fastest if it is empty."""
        where, impl = args[self._device], args[-1] or None
        device = where if self._device_is_given else where.device
        kinds = [args[i].dtype for i in self._tensors if args[i] is not None]
        kinds += [] if self._dtype is None else [args[self._dtype]]
        return self.function(device.type, impl, torch.float64 in kinds)(*args[:-1])

    def function(self, device_type: str, impl: str | None, double: bool) -> Callable[..., Result]:
        """Look up and cache the function that runs; double: float64 is among the arguments."""
        function: Callable[..., Result] = getattr(self.module(device_type, impl, double), self.name)
        self._functions[device_type, impl, double] = function
        return function

    def module(self, device_type: str, impl: str | None, double: bool) -> Any:
        """Return the module of the implementation that runs; double: float64 is among the arguments."""
        return dispatch.module_for(self.folder, device_type, impl, _FLOAT64 if double else "")

    def reference(self, *args: Any) -> Any:
        return getattr(dispatch.implementation(self.folder, "reference"), self.name)(*args)

    def _register(self, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
        name = schema[: schema.index("(")]
        _LIBRARY.define(schema)
        # Without a tensor argument no backend key is set: one kernel serves all devices and reads its argument `device`.
        no_tensor = "Device device" in schema
        for key in ("CompositeExplicitAutograd",) if no_tensor else ("CPU", "CUDA"):
            _LIBRARY.impl(name, kernel, key)
        torch.library.register_fake(f"ptgm_fast::{name}", fake, lib=_LIBRARY)
        # The overload itself: the packet torch.ops.ptgm_fast.<name> would resolve it again on every call.
        return getattr(torch.ops.ptgm_fast, name).default

    @staticmethod
    def _fake(fake: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: fake(*args[:-1])

    def _register_backward(self, head: str, num_results: int) -> None:
        grads = ", ".join(f"Tensor? grad_{i}" for i in range(num_results))
        returns = ", ".join(["Tensor"] * len(self._leaves))
        self._num_results = num_results
        self._backward_op = self._register(
            f"{self.name}_backward({grads}, {head.split('(', 1)[1]}) -> ({returns})",
            self._backward_kernel,
            lambda *args: self._like(args[num_results:]),
        )

    def _like(self, args: Sequence[Any]) -> Any:
        """Return uninitialized gradients in the layout of their tensors; for an optional tensor that is None, an empty one."""
        given = next(args[i] for i in self._leaves if args[i] is not None)
        made = [
            given.new_empty(0) if args[i] is None else torch.empty_like(args[i])
            for i in self._leaves
        ]
        return made[0] if len(made) == 1 else tuple(made)

    def _backward_kernel(self, *args: Any) -> Any:
        grads, args = args[: self._num_results], args[self._num_results :]
        leaves = {i: args[i].detach().requires_grad_() for i in self._leaves if args[i] is not None}
        with torch.enable_grad():
            made = _as_tuple(self.reference(*(leaves.get(i, a) for i, a in enumerate(args))))
            pairs = zip(made, grads, strict=True)
            used = [(r, g) for r, g in pairs if g is not None and r.requires_grad]
            found = torch.autograd.grad(
                [r for r, _ in used], list(leaves.values()), [g for _, g in used]
            )
        laid = self._like(args)
        for leaf, gradient in zip(leaves, found, strict=True):
            _as_tuple(laid)[self._leaves.index(leaf)].copy_(gradient)
        return laid

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(inputs[i] for i in self._tensors))
        ctx.others = [None if i in self._tensors else a for i, a in enumerate(inputs)]

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        args = list(ctx.others)
        found: list[Tensor | None] = [None] * len(args)
        for i, tensor in zip(self._tensors, ctx.saved_tensors, strict=True):
            args[i] = tensor
        if any(grad is not None for grad in grads):
            made = _as_tuple(self._backward_op(*grads, *args[:-1]))
            for i, grad in zip(self._leaves, made, strict=True):
                found[i] = None if args[i] is None else grad
        return tuple(found)


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)
