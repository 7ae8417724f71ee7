"""What the Triton implementations on rows of logits share: launch sizes from shapes."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def unit_of(*lengths: int) -> int:
    """The largest power of 2, up to 16, that divides all of them.

    Triton itself only finds out whether a length is a multiple of 16; 1,000 classes are one of 8, which is enough for
    128-bit accesses. The kernels take such lengths as a number of units.
    """
    unit = 16
    while any(length % unit for length in lengths):
        unit //= 2
    return unit


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
