"""In which precision a network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("auto", "float32", "tf32", "bfloat16")


def resolved(precision: str, device: torch.device) -> str:
    """The precision of that name on a device: "auto" is bfloat16 on GPUs and float32 on CPUs, any other is itself.

    Raises ValueError for a name that is not among `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision


def for_training(precision: str, device: torch.device) -> str:
    """The precision within a training step; the same as `resolved`, except that "auto" is bfloat16 on some CPUs too.

    These are CPUs with bfloat16 multiply instructions (AVX512-BF16, AMX), where training takes about four fifths of the
    time (docs/tuning.md). Images and the labels that condition them stay float32 on every CPU under "auto", so a pool
    made on one processor equals the pool made on another.
    """
    if precision == "auto" and device.type == "cpu" and multiplies_bfloat16():
        return "bfloat16"
    return resolved(precision, device)


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 that torch's convolutions use."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def in_precision(
    network: Callable[..., Tensor], *, device: torch.device, precision: str
) -> Callable[..., Tensor]:
    """network, computed in a precision; its result, like its weights, is float32 in any case.

    float32: as torch's own settings have it, which by default let GPUs since Ampere round convolutions to TF32. tf32: GPUs
    round convolutions and matrix products to it. bfloat16: by autocast. auto: see `resolved`, whose error is raised.
    """
    chosen = resolved(precision, device)
    if chosen == "float32":
        return network

    def in_tf32(*inputs: Any) -> Tensor:
        with tf32():
            return network(*inputs)

    def autocast(*inputs: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            made = network(*inputs)
        # Whoever asked says what is wrong with a network that gives something else.
        return made.float() if isinstance(made, Tensor) else made

    return in_tf32 if chosen == "tf32" else autocast


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
    with (
        _set(allow_tf32=False, products="highest", places=dict.fromkeys(_PLACES, "ieee")),
        torch.autocast("cuda", enabled=False),
        torch.autocast("cpu", enabled=False),
    ):
        yield


@contextmanager
def tf32() -> Iterator[None]:
    """Within the block GPUs since Ampere round the inputs of float32 products and convolutions to TF32. Restored on leaving."""
    places = {("cuda", "matmul"): "tf32", ("cuda", "conv"): "tf32"}
    with _set(allow_tf32=True, products="high", places=places):
        yield


@contextmanager
def _set(
    *, allow_tf32: bool, products: str, places: Mapping[tuple[str, str], str]
) -> Iterator[None]:
    """allow_tf32: of convolutions; products: of `set_float32_matmul_precision`; places: the same under torch's newer names."""
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before = {place: get(*place) for place in _PLACES}
    # torch has the same settings under two sets of names and refuses to read the older ones where the two disagree.
    convolutions_before = _readable(lambda: torch.backends.cudnn.allow_tf32)
    products_before = _readable(torch.get_float32_matmul_precision)
    try:
        put("generic", "all", "none")
        torch.backends.cudnn.allow_tf32 = allow_tf32
        torch.set_float32_matmul_precision(products)
        for place, precision in places.items():
            put(*place, precision)
        yield
    finally:
        if convolutions_before is not None:
            torch.backends.cudnn.allow_tf32 = convolutions_before
        if products_before is not None:
            torch.set_float32_matmul_precision(products_before)
        for place, precision in before.items():
            put(*place, precision)


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None
