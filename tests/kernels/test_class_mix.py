"""`class_mix` against float64: options, extreme values, gradients and errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptgm_fast.kernels import class_mix

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def pair(
    num: int, num_classes: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(num + 10 * num_classes + 100 * dim)
    logits, embedding = 3 * torch.randn(num, num_classes), torch.randn(num_classes, dim)
    return logits.to(dtype), embedding.to(dtype)


def exact(logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The definition again, in float64 and row by row."""
    rows = []
    for row in logits.double():
        kept = row >= row.sort(descending=True).values[min(top_k or len(row), len(row)) - 1]
        weights = torch.where(kept, ((row - row.max()) / temperature).exp(), 0)
        rows.append((weights / weights.sum()) @ embedding.double())
    return torch.stack(rows)


@given(
    num=st.integers(1, 20),
    num_classes=st.integers(1, 300),
    dim=st.integers(1, 80),
    top_k=st.none() | st.integers(1, 320),
    temperature=st.floats(0.1, 10),
)
@settings(max_examples=40, deadline=None)
def test_any_shape(
    num: int, num_classes: int, dim: int, top_k: int | None, temperature: float
) -> None:
    logits, embedding = pair(num, num_classes, dim)
    found = class_mix(logits, embedding, temperature=temperature, top_k=top_k)
    truth = exact(logits, embedding, temperature, top_k)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


def test_dtypes() -> None:
    """Computed in float32 and rounded once, whatever the two dtypes are."""
    for a in FLOATS:
        for b in FLOATS:
            logits, embedding = pair(20, 36, 24)
            logits, embedding = logits.to(a), embedding.to(b)
            found = class_mix(logits, embedding, temperature=0.7, top_k=5)
            assert found.dtype == b
            truth = exact(logits, embedding, 0.7, 5)
            eps = torch.finfo(b).eps
            torch.testing.assert_close(found.double(), truth, rtol=eps, atol=max(eps / 64, 1e-6))


@pytest.mark.parametrize("top_k", [None, 3, 39])
def test_extreme_logits(top_k: int | None) -> None:
    logits, embedding = pair(9, 40, 8)
    logits[0, 3] = torch.nan
    logits[1] = -torch.inf
    logits[2, :39] = -torch.inf
    logits[3] = 1e4
    logits[4] = -1e4
    logits[4, 0] = 1e4
    logits[5, 7] = torch.inf
    logits[6] = torch.linspace(-1e4, 1e4, 40)
    logits[7, 5:] = -torch.inf
    found = class_mix(logits, embedding, top_k=top_k)
    undefined = [True, True, False, False, False, True, False, False, False]
    assert found.isnan().all(dim=1).tolist() == undefined
    assert found.isnan().any(dim=1).tolist() == undefined
    torch.testing.assert_close(found[2], embedding[39])
    torch.testing.assert_close(found[3], embedding.mean(dim=0))
    torch.testing.assert_close(found[4], embedding[0])
    torch.testing.assert_close(found[6], embedding[39])
    few = class_mix(logits[7:8, :5], embedding[:5], top_k=3 if top_k == 3 else None)
    torch.testing.assert_close(found[7:8], few)


def test_ties_take_part_together() -> None:
    members = {1: [0, 2], 2: [0, 2], 3: [0, 1, 2, 3], 4: [0, 1, 2, 3], 5: [0, 1, 2, 3, 4]}
    for zero in (0.0, -0.0):
        logits = torch.full((1, 9), -9.0)
        logits[0, :5] = torch.tensor([1.0, 0.0, 1.0, zero, -2.0])
        for top_k, kept in members.items():
            weights = class_mix(logits, torch.eye(9), top_k=top_k)
            assert weights[0].nonzero().flatten().tolist() == kept
            torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_temperature_sharpens_and_flattens() -> None:
    logits, embedding = pair(5, 30, 7)
    cold = class_mix(logits, embedding, temperature=1e-4)
    torch.testing.assert_close(cold, embedding[logits.argmax(dim=1)])
    hot = class_mix(logits, embedding, temperature=1e6)
    torch.testing.assert_close(hot, embedding.mean(dim=0).expand(5, 7), rtol=1e-3, atol=1e-5)


def test_empty() -> None:
    assert class_mix(torch.empty(0, 3), torch.empty(3, 4)).shape == (0, 4)
    assert class_mix(torch.empty(2, 3), torch.empty(3, 0)).shape == (2, 0)


def test_gradcheck() -> None:
    leaves = [t.double().requires_grad_() for t in pair(4, 6, 3)]
    for top_k in (None, 2):
        assert torch.autograd.gradcheck(
            lambda a, b, k=top_k: class_mix(a, b, temperature=0.7, top_k=k), leaves
        )


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_mix(ones(3), ones(3, 2)), r"logits must be a matrix of floats.*\[3\]"),
        (lambda: class_mix(ones(1, 3).long(), ones(3, 2)), "logits must be a matrix of floats"),
        (lambda: class_mix(ones(1, 3), ones(3)), "embedding must be a matrix of floats"),
        (lambda: class_mix(ones(1, 3), ones(4, 2)), r"the same C >= 1, got \[1, 3\] and \[4, 2\]"),
        (lambda: class_mix(ones(1, 0), ones(0, 2)), "the same C >= 1"),
        (lambda: class_mix(ones(1, 3), ones(3, 2).to("meta")), "must be on the same device"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), temperature=0.0), "must be a positive number"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), temperature=float("nan")), "must be a positive"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), top_k=0), "top_k must be at least 1"),
    ],
)
def test_what_is_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
