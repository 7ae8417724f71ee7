"""From the checked call to an implementation: directly in eager mode, through a torch.library op while torch traces."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..registration import register
from . import reference

FLOAT64 = "it computes in float32; float64 logits need 'reference'"
METHODS = ("uda", "fixmatch", "soft-pseudo-label", "consistency")


def consistency(
    weak: Tensor,
    strong: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
    impl: str | None,
) -> Tensor:
    """The loss of each sample; its gradient to the strong logits is made with it where one is needed."""
    gradient = strong.requires_grad and torch.is_grad_enabled()
    if not dispatch.is_eager(weak, strong, class_thresholds, sample_weight):
        weak = weak.detach()
        traced = (method, temperature, threshold, gradient, impl or "")
        return op(weak, strong, class_thresholds, sample_weight, *traced)[0]
    options = (method, temperature, threshold, class_thresholds, sample_weight)
    module = _module_for(weak, strong, impl)
    if module is reference:
        return module.consistency(weak, strong, *options)
    if gradient:
        return _Fused.apply(strong, weak, module, options)
    return module.consistency(weak, strong, *options, False, False)[0]


def _module_for(weak: Tensor, strong: Tensor, impl: str | None) -> Any:
    is_float64 = weak.dtype is torch.float64 or strong.dtype is torch.float64
    unfit = FLOAT64 if is_float64 else ""
    return dispatch.module_for("consistency", strong.device.type, impl, unfit)


class _Fused(torch.autograd.Function):
    """The gradient is computed with the loss; the backward pass scales its rows."""

    @staticmethod
    def forward(
        ctx: Any, strong: Tensor, weak: Tensor, module: ModuleType, options: tuple[Any, ...]
    ) -> Tensor:
        loss, gradient, counts = module.consistency(weak, strong, *options, True, False)
        ctx.save_for_backward(gradient, counts)
        ctx.module, ctx.dtype = module, strong.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "consistency: the fused implementations have no second derivative; use impl='reference'"
            )
        return ctx.module.scale(*ctx.saved_tensors, grad, ctx.dtype), None, None, None


def _kernel(
    weak: Tensor,
    strong: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
    gradient: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    options = (method, temperature, threshold, class_thresholds, sample_weight)
    module = _module_for(weak, strong, impl or None)
    if module is not reference:
        return module.consistency(weak, strong, *options, gradient, True)[:2]
    loss = module.consistency(weak, strong, *options)
    if not gradient:
        return loss, loss.new_empty(0)
    return loss, module.consistency_gradient(weak, strong, *options)


def _fake(
    weak: Tensor,
    strong: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
    gradient: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if torch.float64 in (weak.dtype, strong.dtype) else torch.float32
    num, classes = strong.shape
    shape = (num, classes) if gradient else (0,)
    return strong.new_empty(num, dtype=kind), strong.new_empty(shape, dtype=kind)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[1].dtype


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    scaled = None if grad is None else (gradient * grad[:, None]).to(ctx.dtype)
    return None, scaled, None, None, None, None, None, None, None


op = register(
    "consistency(Tensor weak, Tensor strong, Tensor? class_thresholds, Tensor? sample_weight, str method,"
    " float temperature, float threshold, bool gradient, str impl) -> (Tensor, Tensor)",
    _kernel,
    _fake,
    backward=_backward,
    setup_context=_setup_context,
)
