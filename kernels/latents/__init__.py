"""Random numbers addressed by (seed, row, element): `latents`, `class_labels` and `uniforms`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_ROW = 2**63 - 1


def _address(num: int, seed: int, start: int | Tensor) -> tuple[int, Tensor | None]:
    if not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an int in [0, 2**64), got {seed!r}")
    if num < 0:
        raise ValueError(f"num must be at least 0, got {num}")
    if isinstance(start, Tensor):
        if start.dtype != torch.int64 or start.numel() != 1:
            raise ValueError(
                f"a tensor start must hold one int64, got {start.dtype} of shape {tuple(start.shape)}; pass an int or torch.tensor(row)"
            )
        return 0, start.reshape(())
    if not start >= 0 or start + num > MAX_ROW:
        raise ValueError(
            f"rows start .. start + num must lie in [0, 2**63), got start={start}, num={num}"
        )
    return start, None


def uniforms(
    num: int,
    dim: int,
    *,
    seed: int,
    start: int | Tensor = 0,
    device: torch.device | str = "cpu",
    impl: str | None = None,
) -> Tensor:
    """Uniform numbers in [0, 1), float32 [num, dim], multiples of 2^-24; row i depends only on (seed, start + i)."""
    start, counter = _address(num, seed, start)
    return reference.uniforms(num, dim, seed, start, counter, torch.device(device))


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
    """Latent vectors [num, dim] of a generator; row i depends only on (seed, start + i)."""
    start, counter = _address(num, seed, start)
    return reference.latents(
        num, dim, seed, start, counter, truncation, dtype, torch.device(device)
    )


def class_labels(
    num: int,
    num_classes: int,
    *,
    seed: int,
    start: int | Tensor = 0,
    device: torch.device | str = "cpu",
    impl: str | None = None,
) -> Tensor:
    """Uniform class labels, int64 [num] in [0, num_classes); row i depends only on (seed, start + i)."""
    start, counter = _address(num, seed, start)
    return reference.class_labels(num, num_classes, seed, start, counter, torch.device(device))
