"""`pseudo_label`: the definition, and every implementation against it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from helpers import isolated
from ptgm_fast.kernels import PseudoLabel, dispatch, pseudo_label
from ptgm_fast.kernels.pseudo_label import _pseudo_label

INTERPRETED = isolated.checks("pseudo_label/interpreted.py", interpret=True)
COMPILED = isolated.checks("pseudo_label/compiled.py", interpret=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (3, 2), (1, 17), (64, 10), (37, 48), (37, 49), (5, 129), (9, 1000), (3, 21841)]
NO_EXTENSION = dispatch.why_not("pseudo_label", "cpu", "cpu")
NAN, INF = float("nan"), float("inf")


def logits(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Rows that range from barely to very confident."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    spread = torch.linspace(0.1, 8, shape[0])[:, None]
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


def test_the_definition(impl: str) -> None:
    values = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0], [-1.0, -INF, -1.5]])
    result = pseudo_label(values, temperature=0.5, threshold=0.7, impl=impl)
    assert isinstance(result, PseudoLabel)
    # The first on ties.
    assert result.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(result.confidence, (values / 0.5).softmax(1).amax(1))
    assert result.mask.tolist() == [True, False, True]
    assert [t.dtype for t in result] == [torch.int64, torch.float32, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_error_is_at_most_twice_that_of_plain_pytorch(
    isa: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    values = logits(shape, dtype)
    exact = (values.double() / 0.7).softmax(1).amax(1)
    theirs = (values / 0.7).softmax(1).amax(1)
    labels, confidence, mask = pseudo_label(values, temperature=0.7, threshold=0.5, impl="cpu")
    assert torch.equal(labels, values.float().argmax(1))
    rounding = torch.finfo(torch.float32).eps
    assert (confidence - exact).abs().max() <= 2 * (theirs.double() - exact).abs().max() + rounding
    assert torch.equal(mask, confidence >= 0.5)


@pytest.mark.skipif(bool(NO_EXTENSION), reason=NO_EXTENSION)
@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 40),
    classes=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(num: int, classes: int, dtype: torch.dtype, ties: bool, seed: int) -> None:
    values = logits((num, classes), dtype, seed)
    if ties:
        values = values.round().clamp(-1, 1)
    ours, theirs = (pseudo_label(values, impl=impl) for impl in ("cpu", "reference"))
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-5, atol=0)


@pytest.mark.parametrize("classes", [5, 100])
def test_extreme_logits(impl_isa: str, classes: int) -> None:
    values = torch.full((5, classes), -1e4)
    values[0, -1] = 1e4
    values[1, 1:] = -INF
    values[2, :2] = 1e4
    values[3, -1] = -1e4 + 0.5
    values[4] = 0.0
    labels, confidence, _ = pseudo_label(values, impl=impl_isa)
    assert labels.tolist() == [classes - 1, 0, 0, classes - 1, 0]
    expected = values.double().softmax(1).amax(1).float()
    torch.testing.assert_close(confidence, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [5, 100])
def test_no_confidence_without_a_finite_maximum(impl_isa: str, classes: int) -> None:
    values = torch.zeros(5, classes)
    values[0, -1], values[1, 1], values[2], values[3] = NAN, INF, -INF, NAN
    labels, confidence, mask = pseudo_label(values, impl=impl_isa)
    assert confidence[:4].isnan().all()
    assert mask.tolist() == [False] * 4 + [True]
    assert ((labels >= 0) & (labels < classes)).all()


def test_layouts(impl: str) -> None:
    wide = logits((24, 150))
    for values in (wide[:, 3:100], wide.t().contiguous().t()[:, 3:100], wide[::2, 3:100]):
        expected = pseudo_label(values.contiguous(), impl="reference")
        actual = pseudo_label(values, impl=impl)
        assert torch.equal(actual.labels, expected.labels)
        torch.testing.assert_close(actual.confidence, expected.confidence)


def test_no_gradient_flows(impl: str) -> None:
    result = pseudo_label(logits((4, 5)).requires_grad_(), impl=impl)
    assert not any(t.requires_grad for t in result)


def test_float64_is_computed_in_float64_or_refused() -> None:
    values = logits((5, 4), torch.float64)
    exact = values.softmax(1).amax(1)
    assert torch.equal(pseudo_label(values).confidence, exact.float())
    if not NO_EXTENSION:
        with pytest.raises(dispatch.ImplementationError, match="float64 needs 'reference'"):
            pseudo_label(values, impl="cpu")


def test_opcheck(impl: str) -> None:
    for dtype in DTYPES:
        torch.library.opcheck(_pseudo_label.op, (logits((5, 20), dtype), 0.7, 0.5, impl))


def test_compiles_whole_and_once(impl: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(values: Tensor) -> Tensor:
        labels, confidence, mask = pseudo_label(values * 2, threshold=0.3, impl=impl)
        return labels * mask + confidence

    for seed in range(3):
        values = logits((11, 60), seed=seed).requires_grad_()
        labels, confidence, mask = pseudo_label(values * 2, threshold=0.3, impl=impl)
        assert torch.equal(compiled(values), labels * mask + confidence)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("num", "classes"), [(20000, 10), (600, 1000)])
def test_the_number_of_threads_changes_nothing(isa: str, num: int, classes: int) -> None:
    values, results, before = logits((num, classes)), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(pseudo_label(values, impl="cpu"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.zeros(2, 3), {"temperature": -1.0}, "temperature must be positive, got -1.0"),
        (torch.zeros(2, 3), {"threshold": 2.0}, r"threshold must lie in \[0, 1\], got 2.0"),
        (torch.zeros(2, 3), {"impl": "C++"}, "unknown implementation 'C\\+\\+'"),
        (torch.zeros(2, 3).long(), {}, "floats .* got torch.int64"),
        (torch.zeros(3), {}, r"\[N, C\] with C >= 1, got torch.float32 of shape \[3\]"),
        (torch.zeros(3, 0), {}, r"of shape \[3, 0\]"),
    ],
)
def test_refused(values: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pseudo_label(values, **options)


@pytest.mark.slow
@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_on_a_gpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = logits(shape, dtype).cuda()
    ours, theirs = (pseudo_label(values, impl=impl) for impl in ("triton", "reference"))
    assert torch.equal(ours.labels, theirs.labels)
    torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-5, atol=0)
