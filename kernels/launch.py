"""What the launches of the Triton implementations share."""

from __future__ import annotations

import contextlib

import torch


def unit_of(*lengths: int) -> int:
    """The largest power of 2, up to 16, that divides all of them.

    Triton itself only finds out whether a length is a multiple of 16; 1,000 classes are one of 8, which is enough for
    128-bit accesses. The kernels take such lengths as a number of units.
    """
    unit = 16
    while any(length % unit for length in lengths):
        unit //= 2
    return unit


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a tensor's device the current one: Triton launches there, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
