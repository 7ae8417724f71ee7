"""Time on a real GPU: each Triton kernel against its plain PyTorch reference on the same tensors, at benchmark sizes.

These tests have not run where they were written, for lack of a GPU. The bound is the minimum for a fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.kernels.views import view_parameters, view_preset

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
Call = Callable[[str], Any]


def image(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").contiguous(memory_format=torch.channels_last)


def norm(x: Tensor, *, phases: bool) -> Call:
    scale, shift = torch.randn(2, 32, 128, device="cuda")
    return lambda impl: kernels.cond_norm_act(
        x, scale, shift, upsample=not phases, phases=phases, impl=impl
    )


def two_views(num: int, side: int) -> Call:
    images = image(num, 3, side, side).clamp(-1, 1)
    weak, strong = (
        view_parameters(
            view_preset("strong"), num, channels=3, height=side, width=side, seed=0, device="cuda"
        )
        for _ in range(2)
    )
    return lambda impl: kernels.apply_views(images, weak, strong, impl=impl)


def with_gradient(num: int, classes: int) -> Call:
    weak, strong = 4 * torch.randn(2, num, classes, device="cuda")
    strong.requires_grad_()
    return lambda impl: torch.autograd.grad(
        kernels.consistency(weak, strong, threshold=0.0, impl=impl).sum(), strong
    )


CASES: dict[str, Callable[[], Call]] = {
    "latents": lambda: (
        lambda impl: kernels.latents(4096, 128, seed=1, truncation=0.5, device="cuda", impl=impl)
    ),
    "upsample": lambda: norm(image(32, 128, 32, 32), phases=False),
    "phases": lambda: norm(image(32, 512, 33, 33), phases=True),
    "views": lambda: two_views(64, 128),
    "consistency": lambda: with_gradient(4096, 1000),
}


@pytest.mark.parametrize("name", CASES)
def test_no_slower_than_the_reference(name: str) -> None:
    from triton.testing import do_bench

    call = CASES[name]()
    fused, plain = (do_bench(lambda impl=impl: call(impl)) for impl in ("triton", "reference"))
    assert fused <= plain, f"{name}: {fused:.3f} ms fused, {plain:.3f} ms in plain PyTorch"
