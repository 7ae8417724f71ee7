"""In which precision a network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


# What torch.backends.*.fp32_precision stand for, the wider before the narrower: torch.export sets the wider ones, which have
# no setter of their own there.
_PLACES = [
    ("generic", "all"),
    *(("cuda", what) for what in ("all", "matmul", "conv", "rnn")),
    *(("mkldnn", what) for what in ("all", "matmul", "conv", "rnn")),
]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within the block float32 products and convolutions are computed in float32, whatever is set outside of it.

    GPUs since Ampere round the inputs of convolutions to TF32 (10 bits of mantissa) by default, and those of matrix
    products where `torch.set_float32_matmul_precision` says so; autocast rounds further. Restored on leaving.
    """
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before = [get(*place) for place in _PLACES]
    # torch has the same settings under two sets of names and refuses to read the older ones where the two disagree.
    convolutions = _readable(lambda: torch.backends.cudnn.allow_tf32)
    products = _readable(torch.get_float32_matmul_precision)
    try:
        put("generic", "all", "none")
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        for place in _PLACES:
            put(*place, "ieee")
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for place, precision in zip(_PLACES, before, strict=True):
            put(*place, precision)


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None
