"""Consistency losses between a weak and a strong view."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..op import ORDINARY, Op
from . import reference

__all__ = ["METHODS", "consistency"]

METHODS = ("uda", "fixmatch", "soft-pseudo-label", "mse")
# Defaults of the methods that have a threshold; the others count every sample.
_THRESHOLDS = {"uda": 0.8, "fixmatch": 0.95}


def consistency(
    weak_logits: Tensor,
    strong_logits: Tensor,
    *,
    method: str = "uda",
    temperature: float = 0.4,
    threshold: float | None = None,
    class_thresholds: Tensor | None = None,
    sample_weight: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Return the consistency loss of each sample, float32 [N], between weak logits w and strong logits s.

    With p_w = softmax(w), p_s = softmax(s), m = [max p_w >= threshold] and v the sample's weight (1 by default):

    ``uda``: v m KL(softmax(w / T) || p_s) (Xie et al. 2020, arXiv:1904.12848, section 3.3);
    ``fixmatch``: v m CE(p_s, argmax p_w) (Sohn et al. 2020, arXiv:2001.07685, eq. 4);
    ``soft-pseudo-label``: v KL(p_w || p_s);
    ``mse``: v mean over classes of (p_w - p_s)^2 (Laine and Aila 2017, arXiv:1610.02242).

    weak_logits, strong_logits [N, C]: floating-point, of the same shape; -inf excludes a class.
    temperature: T of ``uda``; the other methods ignore it. threshold in [0, 1]: used by ``uda`` (0.8 if None) and
    ``fixmatch`` (0.95 if None); the other two count every sample. class_thresholds [C]: one threshold per class, looked up
    at argmax p_w; replaces `threshold` and works with any method (FlexMatch, FreeMatch). sample_weight [N]: v (SoftMatch).

    The gradient flows to the strong logits only. It is computed in the forward pass, so a second derivative needs
    impl="reference". The strong logits of a sample that does not count (m = 0) are not used. If the weak logits have a
    NaN or no finite maximum, the loss is NaN and the gradient 0. Computes in float32; float64 logits are computed in
    float64, by the reference. Raises ValueError for an unknown method, temperature <= 0, a threshold outside [0, 1],
    logits that are not floating-point, or mismatched shapes.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; accepted: {', '.join(METHODS)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if threshold is None or method not in _THRESHOLDS:
        threshold = _THRESHOLDS.get(method, 0.0)
    shape = strong_logits.shape
    if weak_logits.shape != shape or len(shape) != 2 or shape[1] < 1:
        shapes = f"{list(weak_logits.shape)} and {list(shape)}"
        raise ValueError(f"weak and strong logits must both be [N, C] with C >= 1, got {shapes}")
    if not (weak_logits.is_floating_point() and strong_logits.is_floating_point()):
        raise ValueError(
            f"weak and strong logits must be floats, got {weak_logits.dtype} and {strong_logits.dtype}"
        )
    if class_thresholds is not None and class_thresholds.shape != shape[1:]:
        raise ValueError(
            f"class_thresholds must be [C] = [{shape[1]}], got {list(class_thresholds.shape)}"
        )
    if sample_weight is not None and sample_weight.shape != shape[:1]:
        raise ValueError(
            f"sample_weight must be [N] = [{shape[0]}], got {list(sample_weight.shape)}"
        )
    if method != "uda":
        temperature = 1.0
    options = (class_thresholds, sample_weight, method, temperature, threshold)
    return _consistency(weak_logits, strong_logits, *options, impl=impl)


def _fake(
    weak: Tensor,
    strong: Tensor,
    class_thresholds: Tensor | None,
    sample_weight: Tensor | None,
    method: str,
    temperature: float,
    threshold: float,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    kind = torch.float64 if torch.float64 in (weak.dtype, strong.dtype) else torch.float32
    shape = tuple(strong.shape) if gradient else (0,)
    return strong.new_empty(len(strong), dtype=kind), strong.new_empty(shape, dtype=kind)


class _Consistency(Op[Tensor]):
    """Compute the gradient of the strong logits together with the loss; the backward pass only scales its rows."""

    def __call__(self, *args: Any, impl: str | None = None) -> Tensor:
        weak, strong, *options = args
        gradient = strong.requires_grad and torch.is_grad_enabled()
        traced = dispatch.is_tracing()
        for tensor in (weak, strong, options[0], options[1]):
            if tensor is not None and type(tensor) not in ORDINARY:
                traced = True
        loss: Tensor
        if traced:
            loss = self.op(weak.detach(), strong, *options, gradient, impl or "")[0]
            return loss
        module = self._module(weak, strong, impl)
        if module is reference:
            loss = module.consistency(weak, strong, *options)
        elif gradient:
            loss = _Fused.apply(strong, weak, module, options)
        else:
            loss = module.consistency(weak, strong, *options, False, False)[0]
        return loss

    def kernel(self, weak: Tensor, strong: Tensor, *args: Any) -> Any:
        *options, gradient, impl = args
        module = self._module(weak, strong, impl or None)
        if module is not reference:
            return module.consistency(weak, strong, *options, gradient, True)[:2]
        loss = module.consistency(weak, strong, *options)
        if not gradient:
            return loss, loss.new_empty(0)
        return loss, module.consistency_gradient(weak, strong, *options)

    def _module(self, weak: Tensor, strong: Tensor, impl: str | None) -> Any:
        double = weak.dtype is torch.float64 or strong.dtype is torch.float64
        return self.module("cpu" if strong.is_cpu else strong.device.type, impl, double)

    def _setup(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.dtype, ctx.num_inputs = inputs[1].dtype, len(inputs)

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = None if grads[0] is None else (gradient * grads[0][:, None]).to(ctx.dtype)
        return None, scaled, *[None] * (ctx.num_inputs - 2)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, strong: Tensor, weak: Tensor, module: ModuleType, options: tuple[Any, ...]
    ) -> Tensor:
        loss: Tensor
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


_consistency = _Consistency(
    "consistency(Tensor weak, Tensor strong, Tensor? class_thresholds, Tensor? sample_weight, str method,"
    " float temperature, float threshold, bool gradient) -> (Tensor, Tensor)",
    _fake,
    own_gradient=True,
)
