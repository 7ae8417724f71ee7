"""Helpers for launching Triton kernels."""

from __future__ import annotations

import contextlib

import torch


def unit_of(*lengths: int) -> int:
    """Return the largest power of 2, up to 16, that divides all lengths.

    Triton itself only detects whether a length is a multiple of 16. 1,000 classes is a multiple of 8, which is enough
    for 128-bit accesses. The kernels therefore take such lengths as a number of units.
    """
    unit = 16
    while any(length % unit for length in lengths):
        unit //= 2
    return unit


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a tensor's device current: Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
