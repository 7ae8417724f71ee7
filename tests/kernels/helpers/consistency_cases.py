"""Logits for tests of `consistency`, and its loss with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptgm_fast.kernels import consistency


def logits(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows that range from barely to very confident."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    spread = torch.linspace(0.1, 8, shape[0])[:, None]
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


def loss_and_gradient(
    weak: Tensor, strong: Tensor, grad: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = strong.detach().requires_grad_()
    loss = consistency(weak, leaf, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf, grad)[0]
