"""No op depends on `torch.set_default_dtype(torch.float64)` in the calling program: each sets its dtypes explicitly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.views import view_preset


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32, generator=torch.Generator().manual_seed(0))


def with_gradient() -> tuple[Tensor, ...]:
    student = drawn(6, 5).requires_grad_()
    losses = kernels.consistency(3 * drawn(6, 5), student, method="uda", threshold=0.3)
    losses.sum().backward()
    assert student.grad is not None
    return losses.detach(), student.grad


OPS: dict[str, Callable[[], Any]] = {
    "latents": lambda: kernels.latents(7, 5, seed=1, truncation=0.7),
    "class_labels": lambda: kernels.class_labels(9, 4, seed=1),
    "class_mix": lambda: kernels.class_mix(drawn(4, 6), drawn(6, 3), temperature=2.0, top_k=3),
    "pseudo_label": lambda: kernels.pseudo_label(drawn(4, 6), threshold=0.3),
    "views": lambda: kernels.views(
        (255 * drawn(4, 1, 9, 9).sigmoid()).to(torch.uint8),
        weak=view_preset("weak"),
        strong=view_preset("strong"),
        seed=3,
        start=0,
    ),
    "cond_norm_act": lambda: kernels.cond_norm_act(
        drawn(3, 4, 5, 5), drawn(3, 4), drawn(4), upsample=True
    ),
    "consistency": with_gradient,
}


@pytest.fixture
def float64_default() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_default")
@pytest.mark.parametrize("op", OPS)
def test_results_are_the_same(op: str) -> None:
    expected = OPS[op]()
    torch.set_default_dtype(torch.float64)
    for a, b in zip(_tensors(expected), _tensors(OPS[op]()), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_every_op_is_tried() -> None:
    assert set(dispatch.OPS) <= set(OPS)


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, tuple) else (value,)
    return [v for v in values if isinstance(v, Tensor)]
