"""In which precision a network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_precision(
    network: Callable[..., Tensor], *, device: torch.device, precision: str
) -> Callable[..., Tensor]:
    """network, computed in float32 or, by autocast, in bfloat16; its result, like its weights, is float32 in any case.

    precision: "float32", "bfloat16", or "auto", which is bfloat16 on GPUs and float32 on CPUs.
    """
    if precision == "float32" or (precision == "auto" and device.type != "cuda"):
        return network

    def autocast(*inputs: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return network(*inputs).float()

    return autocast
