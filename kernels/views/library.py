"""The torch.library side of the views: schemas, kernels that choose the implementation, fake kernels, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..registration import register
from .parameters import NUM_PARAMETERS


def views(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    impl: str | None,
) -> tuple[Tensor, Tensor]:
    """Both views with packed parameters [N, 24]; the second is empty without strong ones."""
    call = _views_op if dispatch.traces_or_needs_gradient(images, weak, strong) else _views
    return call(images, weak, strong, mean, std, dtype, impl or "")


def view_parameters(
    numbers: Tensor,
    spec_ranges: list[float],
    channels: int,
    height: int,
    width: int,
    impl: str | None,
) -> Tensor:
    """Packed parameters [N, 24] of uniform numbers [N, >= 24] and a spec's ranges."""
    call = _view_parameters if dispatch.is_eager(numbers) else _view_parameters_op
    return call(numbers, spec_ranges, channels, height, width, impl or "")


def _views(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    unfit = "it computes in float32" if torch.float64 in (images.dtype, dtype) else ""
    module: Any = dispatch.module_for("views", images.device.type, impl or None, unfit)
    return module.views(images, weak, strong, mean, std, dtype)


def _views_fake(
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    impl: str,
) -> tuple[Tensor, Tensor]:
    first = torch.empty(
        images.shape, dtype=dtype, device=images.device, memory_format=torch.channels_last
    )
    return first, images.new_empty(0, dtype=dtype) if strong is None else torch.empty_like(first)


def _view_parameters(
    numbers: Tensor, spec_ranges: list[float], channels: int, height: int, width: int, impl: str
) -> Tensor:
    module: Any = dispatch.module_for("views", numbers.device.type, impl or None)
    return module.view_parameters(numbers, spec_ranges, channels, height, width)


def _view_parameters_fake(
    numbers: Tensor, spec_ranges: list[float], channels: int, height: int, width: int, impl: str
) -> Tensor:
    return numbers.new_empty((numbers.shape[0], NUM_PARAMETERS), dtype=torch.float32)


def _views_backward(
    weak_grad: Tensor | None,
    strong_grad: Tensor | None,
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    reference: Any = dispatch.implementation("views", "reference")
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        total = leaf.new_zeros(())
        for given, packed in ((weak_grad, weak), (strong_grad, strong)):
            if given is not None and packed is not None:
                total = total + (reference.view(leaf, packed, mean, std, dtype) * given).sum()
        grad = (
            torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf)
        )
    # In the layout that the fake kernel promises.
    return torch.empty_like(images).copy_(grad)


def _views_backward_fake(
    weak_grad: Tensor | None,
    strong_grad: Tensor | None,
    images: Tensor,
    weak: Tensor,
    strong: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty_like(images)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, weak, strong, ctx.mean, ctx.std, ctx.dtype, _ = inputs
    ctx.save_for_backward(images, weak, strong)


def _backward(
    ctx: Any, weak_grad: Tensor | None, strong_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    grad = None
    if ctx.needs_input_grad[0]:
        images, weak, strong = ctx.saved_tensors
        grads = (weak_grad, strong_grad if strong is not None else None)
        grad = _views_backward_op(*grads, images, weak, strong, ctx.mean, ctx.std, ctx.dtype)
    return grad, None, None, None, None, None, None


_views_op = register(
    "views(Tensor images, Tensor weak, Tensor? strong, float[] mean, float[] std, ScalarType dtype, str impl)"
    " -> (Tensor, Tensor)",
    _views,
    _views_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_views_backward_op = register(
    "views_backward(Tensor? weak_grad, Tensor? strong_grad, Tensor images, Tensor weak, Tensor? strong,"
    " float[] mean, float[] std, ScalarType dtype) -> Tensor",
    _views_backward,
    _views_backward_fake,
)
_view_parameters_op = register(
    "view_parameters(Tensor numbers, float[] ranges, int channels, int height, int width, str impl) -> Tensor",
    _view_parameters,
    _view_parameters_fake,
)
