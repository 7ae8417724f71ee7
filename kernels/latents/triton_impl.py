"""Counter-based random numbers on a GPU: a program evaluates BLOCK counters, four words each, and writes each value once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import on_device
from . import reference

# Counters per program: two per thread, so that a thread's bfloat16 values fill a 128-bit store too.
BLOCK = 256
BLOCK_ROWS = 128
# The reference rounds each operation separately: fused multiply-adds would change the last bit.
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_CENTRE_P = tl.constexpr(reference.CENTRE_P)
_CENTRE_Q = tl.constexpr(reference.CENTRE_Q)
_TAIL_P = tl.constexpr(reference.TAIL_P)
_TAIL_Q = tl.constexpr(reference.TAIL_Q)
_LOG_P = tl.constexpr(reference.LOG_P)
_CENTRE_LIMIT = tl.constexpr(reference.CENTRE_LIMIT)
_CENTRE_SHIFT = tl.constexpr(reference.CENTRE_SHIFT)
_TAIL_SHIFT = tl.constexpr(reference.TAIL_SHIFT)
_LOG_2 = tl.constexpr(reference.LOG_2)
_SQRT_HALF_BITS = tl.constexpr(reference.SQRT_HALF_BITS)
_TRUNCATION_BOUND = tl.constexpr(reference.TRUNCATION_BOUND)
_TRUNCATION_MASS = tl.constexpr(reference.TRUNCATION_MASS)


@triton.jit
def _polynomial(COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr, x):
    value = tl.full(x.shape, COEFFICIENTS[DEGREE], tl.float32)
    for i in tl.static_range(DEGREE):
        value = value * x + COEFFICIENTS[DEGREE - 1 - i]
    return value


@triton.jit
def _log(x):
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    return exponent.to(tl.float32) * _LOG_2 + f * _polynomial(_LOG_P, 7, f)


@triton.jit
def _normal(words, truncation, TRUNCATED: tl.constexpr):
    # `reference.normal_from_words`, operation by operation.
    k = (words >> 1).to(tl.int32)
    x = ((k ^ 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    if TRUNCATED:
        x = x * _TRUNCATION_MASS
    r = _CENTRE_SHIFT - x * x
    numerator = x * _polynomial(_CENTRE_P, 4, r)
    denominator = _polynomial(_CENTRE_Q, 4, r)
    if TRUNCATED:
        z = tl.minimum(tl.math.div_rn(numerator, denominator), _TRUNCATION_BOUND) * truncation
    else:
        q = (k.to(tl.float32) + 0.5) * 4.656612873077393e-10
        t = tl.math.sqrt_rn(tl.maximum(0.0 - _log(q), 0.0)) - _TAIL_SHIFT
        centre = x <= _CENTRE_LIMIT
        numerator = tl.where(centre, numerator, _polynomial(_TAIL_P, 3, t))
        denominator = tl.where(centre, denominator, _polynomial(_TAIL_Q, 2, t))
        z = tl.math.div_rn(numerator, denominator)
    return tl.where((words & 1) != 0, 0.0 - z, z)


@triton.jit
def _first_row(start, counter_ptr):
    row = tl.cast(start, tl.int64)
    if counter_ptr is not None:
        row += tl.load(counter_ptr)
    return row


@triton.jit
def _block_words(seed, row, block, STREAM: tl.constexpr):
    row = tl.cast(row, tl.uint64)
    c2 = tl.cast(block, tl.uint32)
    c3 = tl.zeros_like(c2) + STREAM
    low, high = (row & 0xFFFFFFFF).to(tl.uint32), (row >> 32).to(tl.uint32)
    return tl.philox(tl.cast(seed, tl.uint64), low, high, c2, c3)


@triton.jit(do_not_specialize=["seed", "start"])
def random_kernel(
    out_ptr,
    counter_ptr,
    seed: tl.uint64,
    start: tl.int64,
    truncation: tl.float32,
    num_blocks,
    blocks_per_row,
    dim,
    NORMAL: tl.constexpr,
    TRUNCATED: tl.constexpr,
    WHOLE: tl.constexpr,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (counter blocks,). out [num_blocks / blocks_per_row, dim]; WHOLE: dim is a multiple of 4."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    block = first + tl.arange(0, BLOCK)
    row = block // blocks_per_row
    a, b, c, d = _block_words(
        seed, _first_row(start, counter_ptr) + row, block - row * blocks_per_row, STREAM
    )
    # A counter's words stay side by side in one thread: wide stores need no exchange between threads.
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * BLOCK,))
    if NORMAL:
        values = _normal(words, truncation, TRUNCATED)
    else:
        values = (words >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    element = 4 * first + tl.arange(0, 4 * BLOCK)
    inside = element < 4 * tl.cast(num_blocks, tl.int64)
    if not WHOLE:
        row = element // (4 * blocks_per_row)
        column = element - row * (4 * blocks_per_row)
        inside &= column < dim
        element = row * dim + column
    tl.store(out_ptr + element, values.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["seed", "start"])
def class_labels_kernel(
    out_ptr,
    counter_ptr,
    seed: tl.uint64,
    start: tl.int64,
    num,
    num_classes,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (row blocks,). out int64 [num]."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.uint32)
    high, low, _, _ = _block_words(seed, _first_row(start, counter_ptr) + i, zero, STREAM)
    k = tl.cast(num_classes, tl.uint64)
    label = (high.to(tl.uint64) * k + ((low.to(tl.uint64) * k) >> 32)) >> 32
    tl.store(out_ptr + i, label.to(tl.int64), mask=i < num)


def _random(
    num: int,
    dim: int,
    seed: int,
    start: int,
    counter: Tensor | None,
    truncation: float | None,
    dtype: torch.dtype,
    device: torch.device,
    normal: bool,
) -> Tensor:
    out = torch.empty((num, dim), dtype=dtype, device=device)
    if out.numel() == 0:
        return out
    blocks_per_row = (dim + 3) // 4
    num_blocks = num * blocks_per_row
    with on_device(device):
        random_kernel[(triton.cdiv(num_blocks, BLOCK),)](
            out,
            counter,
            seed & reference.MASK64,
            start,
            0.0 if truncation is None else truncation,
            num_blocks,
            blocks_per_row,
            dim,
            NORMAL=normal,
            TRUNCATED=truncation is not None,
            WHOLE=dim % 4 == 0,
            STREAM=reference.STREAM_LATENTS if normal else reference.STREAM_UNIFORMS,
            BLOCK=BLOCK,
            **_OPTIONS,
        )
    return out


def uniforms(
    num: int, dim: int, seed: int, start: int, counter: Tensor | None, device: torch.device
) -> Tensor:
    """`reference.uniforms` in one kernel."""
    return _random(num, dim, seed, start, counter, None, torch.float32, device, normal=False)


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
    """`reference.latents` in one kernel."""
    return _random(num, dim, seed, start, counter, truncation, dtype, device, normal=True)


def class_labels(
    num: int, num_classes: int, seed: int, start: int, counter: Tensor | None, device: torch.device
) -> Tensor:
    """`reference.class_labels` in one kernel."""
    out = torch.empty(num, dtype=torch.int64, device=device)
    if num:
        with on_device(device):
            class_labels_kernel[(triton.cdiv(num, BLOCK_ROWS),)](
                out,
                counter,
                seed & reference.MASK64,
                start,
                num,
                num_classes,
                STREAM=reference.STREAM_LABELS,
                BLOCK=BLOCK_ROWS,
                **_OPTIONS,
            )
    return out
