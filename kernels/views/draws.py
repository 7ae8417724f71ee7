"""Uniform numbers addressed by (seed, sample index, element)."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # The 64-bit product of two 32-bit numbers in int64, by 16-bit halves of one factor.
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    mid = (low >> 16) + (high & 0xFFFFFFFF)
    return ((high >> 32) << 16) + (mid >> 16), ((mid & 0xFFFF) << 16 | (low & 0xFFFF)) & _MASK


def uniforms(index: Tensor, dim: int, seed: int) -> Tensor:
    """float32 [N, dim] in [0, 1): row i depends on (seed, index[i]) only (Philox4x32-10)."""
    blocks = torch.arange((dim + 3) // 4, dtype=torch.int64, device=index.device)
    shape = (len(index), len(blocks))
    c = [
        (index & _MASK)[:, None].expand(shape),
        ((index >> 32) & _MASK)[:, None].expand(shape),
        blocks[None].expand(shape),
        torch.zeros(shape, dtype=torch.int64, device=index.device),
    ]
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        h0, l0 = _mul_hi_lo(0xD2511F53, c[0])
        h1, l1 = _mul_hi_lo(0xCD9E8D57, c[2])
        c = [h1 ^ c[1] ^ k0, l1, h0 ^ c[3] ^ k1, l0]
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    bits = torch.stack(c, dim=-1).flatten(1)[:, :dim]
    return (bits >> 8).float() * 2.0**-24
