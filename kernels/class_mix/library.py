"""From the checked call to an implementation: directly in eager mode without a gradient, else through the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..registration import register


def class_mix(
    logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None, impl: str
) -> Tensor:
    """The mixed embedding on checked arguments."""
    call = op if dispatch.traces_or_needs_gradient(logits, embedding) else _forward
    return call(logits, embedding, temperature, top_k, impl)


def _forward(
    logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None, impl: str
) -> Tensor:
    double = torch.float64 in (logits.dtype, embedding.dtype)
    unfit = "it computes in float32; float64 needs 'reference'" if double else ""
    module: Any = dispatch.module_for("class_mix", logits.device.type, impl or None, unfit)
    return module.class_mix(logits, embedding, temperature, top_k)


def _forward_fake(
    logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None, impl: str
) -> Tensor:
    return embedding.new_empty(logits.shape[0], embedding.shape[1])


def _backward_kernel(
    grad: Tensor, logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None
) -> tuple[Tensor, Tensor]:
    reference = dispatch.implementation("class_mix", "reference")
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (logits, embedding)]
        mixed = reference.class_mix(*leaves, temperature, top_k)
        grads = torch.autograd.grad(mixed, leaves, grad)
    return grads[0].contiguous(), grads[1].contiguous()


def _backward_fake(
    grad: Tensor, logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), embedding.new_empty(embedding.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, embedding, ctx.temperature, ctx.top_k, _ = inputs
    ctx.save_for_backward(logits, embedding)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = backward_op(grad, *ctx.saved_tensors, ctx.temperature, ctx.top_k)
    return (*grads, None, None, None)


backward_op = register(
    "class_mix_backward(Tensor grad, Tensor logits, Tensor embedding, float temperature, int? top_k)"
    " -> (Tensor, Tensor)",
    _backward_kernel,
    _backward_fake,
)
op = register(
    "class_mix(Tensor logits, Tensor embedding, float temperature, int? top_k, str impl) -> Tensor",
    _forward,
    _forward_fake,
    backward=_backward,
    setup_context=_setup_context,
)
