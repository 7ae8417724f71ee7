"""Calls into csrc/latents.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast import _C

from .. import dispatch
from . import reference

# Must match Kind in csrc/latents.cpp.
UNIFORM, NORMAL, TRUNCATED = 0, 1, 2


def uniforms(
    num: int, dim: int, seed: int, start: int, counter: Tensor | None, device: torch.device
) -> Tensor:
    """`reference.uniforms`, bit for bit."""
    out = torch.empty(num, dim, dtype=torch.float32, device=device)
    _fill(out, UNIFORM, seed, _first(start, counter), reference.STREAM_UNIFORMS, 0.0)
    return out


def latents(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    truncation: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """`reference.latents`, bit for bit."""
    out = torch.empty(num, dim, dtype=dtype, device=device)
    kind = NORMAL if truncation is None else TRUNCATED
    first = _first(start, counter)
    _fill(out, kind, seed, first, reference.STREAM_LATENTS, truncation or 0.0)
    return out


def class_labels(
    num: int, num_classes: int, seed: int, start: int, counter: Tensor | None, device: torch.device
) -> Tensor:
    """`reference.class_labels`, bit for bit."""
    out = torch.empty(num, dtype=torch.int64, device=device)
    first, stream = _first(start, counter), reference.STREAM_LABELS
    key = seed & reference.MASK64
    _C.class_labels(out.data_ptr(), num, num_classes, key, first, stream, dispatch.num_threads())
    return out


def _fill(out: Tensor, kind: int, seed: int, first: int, stream: int, truncation: float) -> None:
    dtype, threads = dispatch.DTYPE_CODES[out.dtype], dispatch.num_threads()
    address = out.data_ptr()
    key = seed & reference.MASK64
    _C.latents(kind, dtype, address, *out.shape, key, first, stream, truncation, threads)


def _first(start: int, counter: Tensor | None) -> int:
    return start if counter is None else start + int(counter)
