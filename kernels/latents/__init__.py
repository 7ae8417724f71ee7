"""Counter-based random numbers, addressed by (seed, row, element): `latents`, `class_labels` and `uniforms`.

Word j of row i is word j % 4 of Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) with the 64-bit key `seed` and
the counter (i, j // 4, stream); each of the three functions has its own stream. A row depends on nothing else: not on
the other rows of the call, the device, the implementation or the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..op import Op

_RANDOM = "int seed, SymInt start, Tensor? counter"
_uniforms: Op[Tensor] = Op(
    f"uniforms(SymInt num, SymInt dim, {_RANDOM}, Device device) -> Tensor",
    lambda num, dim, *rest: torch.empty(num, dim, dtype=torch.float32, device=rest[-1]),
)
_latents: Op[Tensor] = Op(
    f"latents(SymInt num, SymInt dim, {_RANDOM}, float? truncation, ScalarType dtype, Device device) -> Tensor",
    lambda num, dim, *rest: torch.empty(num, dim, dtype=rest[-2], device=rest[-1]),
)
_class_labels: Op[Tensor] = Op(
    f"class_labels(SymInt num, int num_classes, {_RANDOM}, Device device) -> Tensor",
    lambda num, *rest: torch.empty(num, dtype=torch.int64, device=rest[-1]),
)

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def uniforms(
    num: int,
    dim: int,
    *,
    seed: int,
    start: int | Tensor = 0,
    device: torch.device | str = "cpu",
    impl: str | None = None,
) -> Tensor:
    """Return uniform random numbers in [0, 1), float32 [num, dim]: (word >> 8) / 2^24, bit-identical everywhere.

    seed, start, device, impl and errors are as in `latents`. No gradient flows.
    """
    where = torch.device(device)
    return _uniforms(num, dim, *_check(num, dim, seed, start, where), where, impl=impl)


def latents(
    num: int,
    dim: int,
    *,
    seed: int,
    start: int | Tensor = 0,
    truncation: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    impl: str | None = None,
) -> Tensor:
    """Return standard normal numbers [num, dim], optionally truncated; row i depends only on (seed, start + i).

    With u uniform over multiples of 2^-32 in (0, 1), and Phi the standard normal CDF:
    z = Phi^-1(u), |z| <= 6.34; with truncation t > 0, z = t Phi^-1(Phi(-2) + u (Phi(2) - Phi(-2))), |z| <= 2t. This is
    the "truncation trick" (Brock, Donahue, Simonyan 2019, arXiv:1809.11096, section 3.1, which redraws |z| > 2 instead).
    Phi^-1 is a rational approximation with relative error 6e-7. It uses only float32 operations that round the same way
    everywhere, so all implementations agree bit for bit.

    seed: 0 <= seed < 2^64. start: the number of the first row, with start + num <= 2^63, or a tensor that holds it as one
    int64 on `device`. The tensor is read when the kernel runs, so each replay of a captured CUDA graph can make other
    rows; its value is not checked.
    dtype: float32, bfloat16 or float16, rounded from float32. No gradient flows. impl: one of
    `dispatch.IMPLEMENTATIONS`, or None for the fastest.
    Raises ValueError for values outside these ranges.
    """
    if truncation is not None and not 0 < truncation < float("inf"):
        raise ValueError(
            f"truncation must be a positive number, or None for an untruncated normal, got {truncation}"
        )
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, FLOAT_DTYPES))}, got {dtype}")
    where = torch.device(device)
    rows = _check(num, dim, seed, start, where)
    return _latents(num, dim, *rows, truncation, dtype, where, impl=impl)


def class_labels(
    num: int,
    num_classes: int,
    *,
    seed: int,
    start: int | Tensor = 0,
    device: torch.device | str = "cpu",
    impl: str | None = None,
) -> Tensor:
    """Return uniform class labels, int64 [num] in [0, num_classes); row i depends only on (seed, start + i).

    label = floor(num_classes * w / 2^64) for a 64-bit word w, so each class has probability 1 / num_classes to within
    2^-64. 1 <= num_classes < 2**31; seed, start, device, impl and errors are as in `latents`. No gradient flows.
    """
    if not 1 <= num_classes < 2**31:
        raise ValueError(f"num_classes must lie in [1, 2**31), got {num_classes}")
    where = torch.device(device)
    return _class_labels(num, num_classes, *_check(num, 1, seed, start, where), where, impl=impl)


def _check(
    num: int, dim: int, seed: int, start: int | Tensor, device: torch.device
) -> tuple[int, int, Tensor | None]:
    """Return the seed in two's complement (schema ints are signed), the first row, and a tensor to add to it, or None."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2**64), got {seed}")
    if num < 0 or dim < 0:
        raise ValueError(f"sizes must not be negative, got [{num}, {dim}]")
    signed = seed - 2**64 if seed >= 2**63 else seed
    if isinstance(start, Tensor):
        if start.dtype != torch.int64 or start.numel() != 1 or start.device.type != device.type:
            raise ValueError(
                "a tensor `start` must hold one int64 on the device of the result "
                f"({device}), got {start.dtype} of shape {list(start.shape)} on {start.device}"
            )
        return signed, 0, start
    if start < 0 or start + num > 2**63:
        raise ValueError(f"rows must lie in [0, 2**63), got start={start} and num={num}")
    return signed, start, None
