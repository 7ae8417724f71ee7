"""Counter-based random numbers in plain PyTorch: the definition of `uniforms`, `latents` and `class_labels`.

Every float step below is a single, separately rounded IEEE float32 operation (+, -, *, /, sqrt; no fused multiply-add,
no library logarithm), so an implementation that keeps the order of operations gives the same bits on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
# Seeds arrive in two's complement; this mask makes them unsigned.
MASK64 = 0xFFFFFFFFFFFFFFFF

# Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
PHILOX_ROUNDS = 10
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

# The fourth counter word separates the three functions: with the same seed they share no block.
STREAM_UNIFORMS, STREAM_LATENTS, STREAM_LABELS = 0, 1, 2

# The standard normal's inverse CDF as a function of x = |2u - 1| (centre) and q = 1 - x (tail): minimax rational fits,
# relative error 1e-7 each, 6e-7 including float32 rounding. Lowest degree first.
CENTRE_LIMIT = 0.959  # x up to here is the centre; a normal truncated at 2 needs only x <= erf(sqrt 2) = 0.9545
# The centre's variable is 0.92 - x^2, which avoids cancellation where the function is steep.
CENTRE_SHIFT = 0.92
CENTRE_P = (2.1322834, 30.930613, 112.216805, 94.98511, 8.783196)
CENTRE_Q = (1.0, 16.54876, 74.1179, 90.929695, 20.18481)
TAIL_SHIFT = 1.8  # the tail's variable is sqrt(-log q) - 1.8
TAIL_P = (2.062461, 3.1591282, 1.5455067, 0.22729474)
TAIL_Q = (1.0, 0.81302637, 0.1603977)
# log(1 + f) / f for f in [sqrt(1/2) - 1, sqrt(2) - 1], error 1.7e-7.
LOG_P = (
    0.99999994,
    -0.50000364,
    0.3333506,
    -0.24969909,
    0.19900171,
    -0.17250851,
    0.1622254,
    -0.10106774,
)
LOG_2 = math.log(2)
SQRT_HALF_BITS = 0x3F3504F3

TRUNCATION_BOUND = 2.0
TRUNCATION_MASS = math.erf(math.sqrt(2))  # P(|z| < 2)


def _multiply_32(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # High and low 32 bits of a 64-bit unsigned product, computed in int64 by splitting one factor into 16-bit halves.
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10 of a 4-word counter and a 2-word key; words are int64 tensors in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        high0, low0 = _multiply_32(PHILOX_MULTIPLIERS[0], c0)
        high1, low1 = _multiply_32(PHILOX_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & MASK32, (k1 + PHILOX_KEY_STEPS[1]) & MASK32
    return [c0, c1, c2, c3]


def random_words(rows: Tensor, dim: int, *, seed: int, stream: int) -> Tensor:
    """Return 32-bit words, int64 [N, dim]: element j of a row is word j % 4 of the block (row, j // 4, stream)."""
    blocks = torch.arange((dim + 3) // 4, dtype=torch.int64, device=rows.device)
    shape = (len(rows), len(blocks))
    counter = (
        (rows & MASK32)[:, None].expand(shape),
        ((rows >> 32) & MASK32)[:, None].expand(shape),
        blocks[None].expand(shape),
        torch.full(shape, stream, dtype=torch.int64, device=rows.device),
    )
    words = philox4x32(counter, (seed & MASK32, (seed >> 32) & MASK32))
    return torch.stack(words, dim=-1).flatten(1)[:, :dim]


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    # Horner's rule, with the multiplication and the addition rounded separately.
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _log(x: Tensor) -> Tensor:
    # x = 2^e * m with m in [sqrt(1/2), sqrt(2)), from the float's bits; log x = e log 2 + log m.
    bits = x.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1
    return exponent.float() * LOG_2 + f * _polynomial(LOG_P, f)


def _sqrt(x: Tensor) -> Tensor:
    # Through float64, which gives the correctly rounded float32 root: torch's own (MKL's) can be off in the last bit.
    return torch.sqrt(x.double()).float()


def _half_normal(x: Tensor) -> tuple[Tensor, Tensor]:
    # Numerator and denominator of the inverse CDF in the centre, sqrt(2) erfinv(x).
    r = CENTRE_SHIFT - x * x
    return x * _polynomial(CENTRE_P, r), _polynomial(CENTRE_Q, r)


def normal_from_words(words: Tensor, truncation: float | None) -> Tensor:
    """Map 32-bit words to float32 (truncated) normals; bit 0 is the sign, bits 1 to 31 are the magnitude's quantile.

    With k = word >> 1, q = (k + 1/2) / 2^31 and x = 1 - q:
    |z| = sqrt(2) erfinv(x), or truncation * min(2, sqrt(2) erfinv(erf(sqrt 2) x)). |z| <= 6.34 without truncation.
    """
    k = words >> 1
    x = ((k ^ 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    if truncation is None:
        q = (k.float() + 0.5) * 2.0**-31
        numerator, denominator = _half_normal(x)
        r = _sqrt(torch.clamp(-_log(q), min=0.0)) - TAIL_SHIFT
        centre = x <= CENTRE_LIMIT
        z = torch.where(centre, numerator, _polynomial(TAIL_P, r)) / torch.where(
            centre, denominator, _polynomial(TAIL_Q, r)
        )
    else:
        numerator, denominator = _half_normal(x * TRUNCATION_MASS)
        z = torch.clamp(numerator / denominator, max=TRUNCATION_BOUND) * truncation
    return torch.where((words & 1).bool(), -z, z)


def _rows(num: int, start: int, counter: Tensor | None, device: torch.device) -> Tensor:
    rows = torch.arange(num, dtype=torch.int64, device=device) + start
    return rows if counter is None else rows + counter


def uniforms(
    num: int, dim: int, seed: int, start: int, counter: Tensor | None, device: torch.device
) -> Tensor:
    """Return (word >> 8) / 2^24, float32 [num, dim] in [0, 1)."""
    words = random_words(_rows(num, start, counter, device), dim, seed=seed, stream=STREAM_UNIFORMS)
    return (words >> 8).float() * 2.0**-24


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
    """Return `normal_from_words` of each row's words, [num, dim]."""
    words = random_words(_rows(num, start, counter, device), dim, seed=seed, stream=STREAM_LATENTS)
    return normal_from_words(words, truncation).to(dtype)


def class_labels(
    num: int, num_classes: int, seed: int, start: int, counter: Tensor | None, device: torch.device
) -> Tensor:
    """Return floor(num_classes * (word0 * 2^32 + word1) / 2^64), int64 [num]."""
    words = random_words(_rows(num, start, counter, device), 2, seed=seed, stream=STREAM_LABELS)
    return (words[:, 0] * num_classes + ((words[:, 1] * num_classes) >> 32)) >> 32
