"""`class_mix`: every implementation against float64, its options and its extremes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import isolated
from ptgm_fast.kernels import class_mix, dispatch

INTERPRETED = isolated.checks("class_mix/interpreted.py", interpret=True)
COMPILED = isolated.checks("class_mix/compiled.py", interpret=False)
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ISAS = ["portable", "avx2", "avx512"]
SIZES = [
    (256, 1000, 128),
    (8, 2, 64),
    (3, 1, 5),
    (1, 300, 1),
    (17, 33, 31),
    (9, 130, 200),
    (2, 21841, 20),
]


@pytest.fixture(params=["reference", *ISAS])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the C++ implementation on every instruction set that this machine has."""
    if request.param == "reference":
        yield "reference"
        return
    reason = dispatch.why_not("class_mix", "cpu", "cpu")
    if reason:
        pytest.skip(reason)
    from ptgm_fast import _C

    widest = _C.isa()
    try:
        _C.use_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield "cpu"
    _C.use_isa(widest)


def pair(
    num: int, num_classes: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(num + 10 * num_classes + 100 * dim)
    logits, embedding = 3 * torch.randn(num, num_classes), torch.randn(num_classes, dim)
    return logits.to(dtype), embedding.to(dtype)


def exact(logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The definition once more, in float64 and row by row."""
    rows = []
    for row in logits.double():
        kept = row >= row.sort(descending=True).values[min(top_k or len(row), len(row)) - 1]
        weights = torch.where(kept, ((row - row.max()) / temperature).exp(), 0)
        rows.append((weights / weights.sum()) @ embedding.double())
    return torch.stack(rows)


def assert_as_good_as_torch(
    found: Tensor, logits: Tensor, embedding: Tensor, temperature: float, top_k: int | None
) -> None:
    """The error against float64 is at most twice that of plain PyTorch calls at the same dtypes."""
    truth = exact(logits, embedding, temperature, top_k)
    scaled = logits / temperature
    if top_k is not None and top_k < logits.shape[1]:
        scaled = scaled.masked_fill(logits < logits.topk(top_k, 1).values[:, -1:], -torch.inf)
    plain = (scaled.softmax(1).to(embedding.dtype) @ embedding).double()
    # A unit in the last place of a typical value: what may be lost where torch happens to be exact.
    last_place = torch.finfo(embedding.dtype).eps * truth.abs().mean()
    for norm in (lambda e: e.abs().max(), lambda e: e.square().mean().sqrt()):
        assert norm(found.double() - truth) <= 2 * norm(plain - truth) + last_place


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("num", "num_classes", "dim"), SIZES)
def test_against_float64(
    impl: str, num: int, num_classes: int, dim: int, dtype: torch.dtype
) -> None:
    logits, embedding = pair(num, num_classes, dim, dtype)
    for top_k in {None, 1, min(5, num_classes), max(1, num_classes // 3), max(1, num_classes - 1)}:
        found = class_mix(logits, embedding, temperature=0.7, top_k=top_k, impl=impl)
        assert found.dtype == dtype
        assert found.shape == (num, dim)
        assert_as_good_as_torch(found, logits, embedding, 0.7, top_k)


@given(
    num=st.integers(1, 20),
    num_classes=st.integers(1, 300),
    dim=st.integers(1, 80),
    top_k=st.none() | st.integers(1, 320),
    temperature=st.floats(0.1, 10),
    isa=st.sampled_from(ISAS),
)
@settings(max_examples=60, deadline=None)
def test_any_shape(
    num: int, num_classes: int, dim: int, top_k: int | None, temperature: float, isa: str
) -> None:
    if reason := dispatch.why_not("class_mix", "cpu", "cpu"):
        pytest.skip(reason)
    from ptgm_fast import _C

    widest = _C.isa()
    if ISAS.index(isa) <= ISAS.index(widest):
        _C.use_isa(isa)
    try:
        logits, embedding = pair(num, num_classes, dim)
        found = class_mix(logits, embedding, temperature=temperature, top_k=top_k, impl="cpu")
    finally:
        _C.use_isa(widest)
    truth = exact(logits, embedding, temperature, top_k)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [None, 3, 39])
def test_extreme_logits(impl: str, top_k: int | None) -> None:
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
    found = class_mix(logits, embedding, top_k=top_k, impl=impl)
    undefined = [True, True, False, False, False, True, False, False, False]
    assert found.isnan().all(dim=1).tolist() == undefined
    assert found.isnan().any(dim=1).tolist() == undefined
    torch.testing.assert_close(found[2], embedding[39])
    torch.testing.assert_close(found[3], embedding.mean(dim=0))
    torch.testing.assert_close(found[4], embedding[0])
    torch.testing.assert_close(found[6], embedding[39])
    few = class_mix(logits[7:8, :5], embedding[:5], top_k=3 if top_k == 3 else None, impl=impl)
    torch.testing.assert_close(found[7:8], few)


def test_ties_take_part_together(impl: str) -> None:
    members = {1: [0, 2], 2: [0, 2], 3: [0, 1, 2, 3], 4: [0, 1, 2, 3], 5: [0, 1, 2, 3, 4]}
    for zero in (0.0, -0.0):
        # 25 classes: few of many, which the C++ implementation gathers; 9: most of few, which it multiplies.
        for num_classes in (25, 9):
            logits = torch.full((1, num_classes), -9.0)
            logits[0, :5] = torch.tensor([1.0, 0.0, 1.0, zero, -2.0])
            for top_k, kept in members.items():
                weights = class_mix(logits, torch.eye(num_classes), top_k=top_k, impl=impl)
                assert weights[0].nonzero().flatten().tolist() == kept
                torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_temperature_sharpens_and_flattens(impl: str) -> None:
    logits, embedding = pair(5, 30, 7)
    cold = class_mix(logits, embedding, temperature=1e-4, impl=impl)
    torch.testing.assert_close(cold, embedding[logits.argmax(dim=1)])
    hot = class_mix(logits, embedding, temperature=1e6, impl=impl)
    torch.testing.assert_close(hot, embedding.mean(dim=0).expand(5, 7), rtol=1e-3, atol=1e-5)


def test_strides_and_mixed_dtypes(impl: str) -> None:
    logits, embedding = pair(20, 36, 24)
    expected = class_mix(logits, embedding, impl="reference")
    wide = torch.randn(20, 100)
    wide[:, 30:66] = logits
    for some in (wide[:, 30:66], logits.t().contiguous().t()):
        for table in (embedding, embedding.t().contiguous().t()):
            torch.testing.assert_close(class_mix(some, table, impl=impl), expected)
    # A stride of 0: one row, repeated.
    repeated = class_mix(logits[:1].expand(4, 36), embedding, impl=impl)
    torch.testing.assert_close(repeated, expected[:1].expand(4, 24))
    for a in FLOATS:
        for b in FLOATS:
            found = class_mix(logits.to(a), embedding.to(b), impl=impl)
            reference = class_mix(logits.to(a), embedding.to(b), impl="reference")
            assert found.dtype == b
            torch.testing.assert_close(found, reference)


def test_empty(impl: str) -> None:
    assert class_mix(torch.empty(0, 3), torch.empty(3, 4), impl=impl).shape == (0, 4)
    assert class_mix(torch.empty(2, 3), torch.empty(3, 0), impl=impl).shape == (2, 0)


def test_the_same_bits_with_any_number_of_threads(impl: str) -> None:
    if impl == "reference":
        pytest.skip("torch's own product may split its sums by threads")
    logits, embedding = pair(53, 700, 130)
    before = torch.get_num_threads()
    try:
        for top_k in (None, 5, 600):
            torch.set_num_threads(1)
            expected = class_mix(logits, embedding, top_k=top_k, impl=impl)
            for threads in (2, 3, 5):
                torch.set_num_threads(threads)
                assert torch.equal(class_mix(logits, embedding, top_k=top_k, impl=impl), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("num", "num_classes", "dim"), SIZES)
def test_on_a_gpu(num: int, num_classes: int, dim: int) -> None:
    for dtype in FLOATS:
        logits, embedding = pair(num, num_classes, dim, dtype)
        for top_k in (None, 1, max(1, num_classes // 2)):
            options = {"temperature": 0.7, "top_k": top_k}
            found = class_mix(logits.cuda(), embedding.cuda(), **options, impl="triton").cpu()
            assert_as_good_as_torch(found, logits, embedding, 0.7, top_k)
