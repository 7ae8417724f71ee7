"""Exact float32 under every ambient setting: what a GPU since Ampere would round, simulated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.models.precision import exact_float32, for_training, in_precision, resolved

aten = torch.ops.aten
backends: Any = torch.backends
PLACES = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)


def to_tf32(x: Any) -> Any:
    """Rounded to 10 bits of mantissa, to nearest even."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).view_as(x)


def precisions() -> list[Any]:
    """What is set, by either set of torch's names."""

    def older(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return "unreadable"

    names = (lambda: backends.cudnn.allow_tf32, torch.get_float32_matmul_precision)
    return [*(place.fp32_precision for place in PLACES), *(older(read) for read in names)]


class Ampere(TorchDispatchMode):
    """Rounds the inputs of convolutions and matrix products where the settings would on such a GPU."""

    rounded = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = None
        if func in (aten.convolution.default, aten.mkldnn_convolution.default):
            place = backends.cudnn.conv
        elif func in (aten.addmm.default, aten.mm.default, aten.bmm.default):
            place = backends.cuda.matmul
        if place is not None and place.fp32_precision == "tf32":
            self.rounded += 1
            args = [to_tf32(a) for a in args]
        return func(*args, **(kwargs or {}))


@contextmanager
def high() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def new_names() -> Iterator[None]:
    """As the newer of torch's two sets of names has it; the older ones cannot be read then."""
    before = backends.fp32_precision
    backends.fp32_precision = "tf32"
    try:
        yield
    finally:
        backends.fp32_precision = before


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "torch's default": nullcontext,
    "matmul high": high,
    "everything tf32": new_names,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", AMBIENT)
def test_a_rewrite_is_verified_where_convolutions_are_rounded(name: str) -> None:
    """By default cuDNN's convolutions are: 6.7e-4 of the letters, against a tolerance of 1e-5."""
    letters = generators.load("letters")
    with AMBIENT[name](), Ampere() as ampere:
        before = precisions()
        done = generators.optimize(letters)
        assert precisions() == before
    assert ampere.rounded == 0
    assert done.left is None
    assert done.difference is not None
    assert done.difference < 1e-5


@torch.no_grad()
def test_the_simulation_rounds() -> None:
    """Without the block the same rewrite differs by what the rounding makes of it."""
    without = inspect.unwrap(generators.optimize)
    with Ampere() as ampere:
        done = without(generators.load("letters"))
    assert ampere.rounded > 5
    assert done.difference is not None
    assert done.difference > 1e-4


def test_settings_are_restored_after_an_error() -> None:
    before = precisions()

    def planted() -> None:
        with exact_float32():
            assert set(precisions()) == {"ieee", False, "highest"}
            raise UserError("planted")

    with pytest.raises(UserError, match="planted"):
        planted()
    assert precisions() == before


@torch.no_grad()
def test_tf32_rounds_convolutions_and_products_and_is_restored() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    images, before = torch.randn(2, 3, 6, 6), precisions()
    rounded = {}
    for precision in ("float32", "tf32"):
        with Ampere() as ampere:
            made = in_precision(network, device=torch.device("cuda"), precision=precision)(images)
        rounded[precision] = ampere.rounded
        assert made.dtype == torch.float32
        assert precisions() == before
    # torch's own setting is convolutions alone.
    assert rounded == {"float32": 1, "tf32": 2}


def test_a_precision_that_is_none_is_refused() -> None:
    for wrong in ("bf16", "float16", ""):
        with pytest.raises(ValueError, match="must be one of auto, float32, tf32, bfloat16"):
            resolved(wrong, torch.device("cpu"))
    names = [resolved("auto", torch.device(device)) for device in ("cpu", "cuda")]
    assert names == ["float32", "bfloat16"]


@pytest.mark.parametrize("native", [True, False])
def test_auto_trains_in_bfloat16_where_the_processor_multiplies_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert for_training("auto", cpu) == ("bfloat16" if native else "float32")
    assert for_training("auto", cuda) == "bfloat16"
    for named in ("float32", "bfloat16"):
        assert for_training(named, cpu) == named
    # Images and labels are the same on every CPU.
    assert resolved("auto", cpu) == "float32"
    with pytest.raises(ValueError, match="must be one of"):
        for_training("bf16", cpu)
