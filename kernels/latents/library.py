"""From the checked call to an implementation: directly in eager mode, through a torch.library op while torch traces."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import dispatch

_LIBRARY = torch.library.Library("ptgm_fast", "FRAGMENT")
_MASK64 = 2**64 - 1


def _module(device: torch.device, impl: str) -> ModuleType:
    return dispatch.module_for("latents", device.type, impl or None)


def _register(
    schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    # Without a tensor argument no backend's key is set: one kernel for all devices, which reads its argument `device`.
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ptgm_fast::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.ptgm_fast, name).default


def _signed(seed: int) -> int:
    # A schema's int has 63 bits and a sign: a seed passes through it in two's complement.
    return seed - 2**64 if seed >= 2**63 else seed


def uniforms(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    device: torch.device,
    impl: str,
) -> Tensor:
    """float32 [num, dim]; the rows are start + counter onwards, a missing counter being 0."""
    if dispatch.is_eager(counter):
        return _uniforms(num, dim, seed, start, counter, device, impl)
    return uniforms_op(num, dim, _signed(seed), start, counter, device, impl)


def _uniforms(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    device: torch.device,
    impl: str,
) -> Tensor:
    return _module(device, impl).uniforms(num, dim, seed & _MASK64, start, counter, device)


def _uniforms_fake(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    device: torch.device,
    impl: str,
) -> Tensor:
    return torch.empty(num, dim, dtype=torch.float32, device=device)


def latents(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    truncation: float | None,
    dtype: torch.dtype,
    device: torch.device,
    impl: str,
) -> Tensor:
    """[num, dim] of that dtype; rows as in `uniforms`."""
    if dispatch.is_eager(counter):
        return _latents(num, dim, seed, start, counter, truncation, dtype, device, impl)
    return latents_op(num, dim, _signed(seed), start, counter, truncation, dtype, device, impl)


def _latents(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    truncation: float | None,
    dtype: torch.dtype,
    device: torch.device,
    impl: str,
) -> Tensor:
    module = _module(device, impl)
    return module.latents(num, dim, seed & _MASK64, start, counter, truncation, dtype, device)


def _latents_fake(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    truncation: float | None,
    dtype: torch.dtype,
    device: torch.device,
    impl: str,
) -> Tensor:
    return torch.empty(num, dim, dtype=dtype, device=device)


def class_labels(
    num: int,
    num_classes: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    device: torch.device,
    impl: str,
) -> Tensor:
    """int64 [num]; rows as in `uniforms`."""
    if dispatch.is_eager(counter):
        return _class_labels(num, num_classes, seed, start, counter, device, impl)
    return class_labels_op(num, num_classes, _signed(seed), start, counter, device, impl)


def _class_labels(
    num: int,
    num_classes: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    device: torch.device,
    impl: str,
) -> Tensor:
    module = _module(device, impl)
    return module.class_labels(num, num_classes, seed & _MASK64, start, counter, device)


def _class_labels_fake(
    num: int,
    num_classes: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    device: torch.device,
    impl: str,
) -> Tensor:
    return torch.empty(num, dtype=torch.int64, device=device)


uniforms_op = _register(
    "uniforms(SymInt num, SymInt dim, int seed, SymInt start, Tensor? counter, Device device, str impl) -> Tensor",
    _uniforms,
    _uniforms_fake,
)
latents_op = _register(
    "latents(SymInt num, SymInt dim, int seed, SymInt start, Tensor? counter, float? truncation,"
    " ScalarType dtype, Device device, str impl) -> Tensor",
    _latents,
    _latents_fake,
)
class_labels_op = _register(
    "class_labels(SymInt num, int num_classes, int seed, SymInt start, Tensor? counter, Device device, str impl)"
    " -> Tensor",
    _class_labels,
    _class_labels_fake,
)
