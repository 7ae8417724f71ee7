"""The torch.library side of cond_norm_act: schema, kernel that chooses the implementation, fake kernel, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..registration import register


def cond_norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
    impl: str | None,
) -> Tensor:
    """The op itself, on checked arguments."""
    arguments = (x, scale, shift, residual)
    call = op if dispatch.traces_or_needs_gradient(*arguments) else _forward
    return call(*arguments, activation, upsample, phases, impl or "")


def _forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
    impl: str,
) -> Tensor:
    unfit = "it computes in float32" if x.dtype == torch.float64 else ""
    module: Any = dispatch.module_for("cond_norm_act", x.device.type, impl or None, unfit)
    return module.cond_norm_act(x, scale, shift, residual, activation, upsample, phases)


def _forward_fake(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
    impl: str,
) -> Tensor:
    num, channels, height, width = x.shape
    if phases:
        channels, height, width = channels // 4, 2 * height - 2, 2 * width - 2
    elif upsample:
        height, width = 2 * height, 2 * width
    shape = (num, channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _backward_kernel(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reference = dispatch.implementation("cond_norm_act", "reference")
    given = (x, scale, shift) if residual is None else (x, scale, shift, residual)
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in given]
        y = reference.cond_norm_act(
            *leaves[:3], None if residual is None else leaves[3], activation, upsample, phases
        )
        grads = torch.autograd.grad(y, leaves, grad)
    # In the layout that the fake kernel promises.
    laid = [torch.empty_like(t).copy_(g) for t, g in zip(given, grads, strict=True)]
    return laid[0], laid[1], laid[2], laid[3] if residual is not None else grad.new_empty(0)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    last = grad.new_empty(0) if residual is None else torch.empty_like(residual)
    return torch.empty_like(x), torch.empty_like(scale), torch.empty_like(shift), last


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, residual, ctx.activation, ctx.upsample, ctx.phases, _ = inputs
    ctx.save_for_backward(x, scale, shift, residual)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, shift, residual = ctx.saved_tensors
    options = (ctx.activation, ctx.upsample, ctx.phases)
    grads = _backward_op(grad, x, scale, shift, residual, *options)
    return (*grads[:3], None if residual is None else grads[3], None, None, None, None)


op = register(
    "cond_norm_act(Tensor x, Tensor scale, Tensor shift, Tensor? residual, str activation, bool upsample,"
    " bool phases, str impl) -> Tensor",
    _forward,
    _forward_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    "cond_norm_act_backward(Tensor grad, Tensor x, Tensor scale, Tensor shift, Tensor? residual, str activation,"
    " bool upsample, bool phases) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
