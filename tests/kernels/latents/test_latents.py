"""`latents`, `uniforms` and `class_labels`: the stream against Random123 and numpy, the addressing, every implementation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import isolated
from ptgm_fast.kernels import class_labels, dispatch, latents, uniforms
from ptgm_fast.kernels.latents import reference

INTERPRETED = isolated.checks("latents/interpreted.py", interpret=True)
COMPILED = isolated.checks("latents/compiled.py", interpret=False)
# (counter, key, words) of philox4x32 10 in the file kat_vectors of Random123 1.14.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
SEEDS = st.integers(0, 2**64 - 1)
STARTS = st.integers(0, 2**63 - 64)


@pytest.fixture(params=["reference", "portable", "avx2", "avx512"])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference, and the C++ implementation with every instruction set that this machine supports."""
    if request.param == "reference":
        yield "reference"
        return
    reason = dispatch.why_not("latents", "cpu", "cpu")
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


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox4(
    counter: list[int], key: list[int], bits: int, multipliers: list[int], steps: list[int]
) -> list[int]:
    """Philox4x{bits}-10 in Python integers, for any word width."""
    mask = 2**bits - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = multipliers[0] * c[0], multipliers[1] * c[2]
        c = [(p1 >> bits) ^ c[1] ^ k[0], p1 & mask, (p0 >> bits) ^ c[3] ^ k[1], p0 & mask]
        k = [(a + b) & mask for a, b in zip(k, steps, strict=True)]
    return c


# The constants of Salmon et al. (2011), table 2 and section 4.
philox4x64 = partial(
    philox4,
    bits=64,
    multipliers=[0xD2E7470EE14C6C93, 0xCA5A826395121157],
    steps=[0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B],
)
philox4x32 = partial(
    philox4, bits=32, multipliers=[0xD2511F53, 0xCD9E8D57], steps=[0x9E3779B9, 0xBB67AE85]
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    given_counter = [torch.tensor([c]) for c in words(counter)]
    found = reference.philox4x32(given_counter, (words(key)[0], words(key)[1]))
    assert [int(word) for word in found] == words(expected)
    assert philox4x32(words(counter), words(key)) == words(expected)


def test_the_first_known_answer_reaches_the_public_function(impl: str) -> None:
    expected = torch.tensor([[(word >> 8) / 2**24 for word in words(KNOWN_ANSWERS[0][2])]])
    assert torch.equal(uniforms(1, 4, seed=0, impl=impl), expected)


@given(st.lists(SEEDS, min_size=4, max_size=4), st.lists(SEEDS, min_size=2, max_size=2))
@settings(max_examples=30, deadline=None)
def test_numpys_philox_is_the_same_function_on_wider_words(
    counter: list[int], key: list[int]
) -> None:
    generator = np.random.Philox(counter=np.array(counter, np.uint64), key=np.array(key, np.uint64))
    # numpy increments the counter before the first block.
    number = (sum(c << (64 * i) for i, c in enumerate(counter)) + 1) % 2**256
    raised = [(number >> (64 * i)) % 2**64 for i in range(4)]
    assert philox4x64(raised, key) == generator.random_raw(4).tolist()


@given(SEEDS, STARTS, st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_words_of_the_reference(seed: int, row: int, stream: int) -> None:
    found = reference.random_words(torch.tensor([row]), 9, seed=seed, stream=stream)
    expected: list[int] = []
    for block in range(3):
        expected += philox4x32([row % 2**32, row >> 32, block, stream], [seed % 2**32, seed >> 32])
    assert found.tolist() == [expected[:9]]


@given(
    num=st.integers(0, 40),
    dim=st.integers(0, 40),
    seed=SEEDS,
    start=STARTS,
    truncation=st.none() | st.floats(0.01, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_the_same_bits_as_the_reference(
    num: int, dim: int, seed: int, start: int, truncation: float | None, dtype: torch.dtype
) -> None:
    if reason := dispatch.why_not("latents", "cpu", "cpu"):
        pytest.skip(reason)
    both = ("cpu", "reference")
    a, b = (
        latents(num, dim, seed=seed, start=start, truncation=truncation, dtype=dtype, impl=i)
        for i in both
    )
    assert a.dtype == dtype
    assert a.shape == (num, dim)
    assert torch.equal(a, b)
    a, b = (uniforms(num, dim, seed=seed, start=start, impl=i) for i in both)
    assert torch.equal(a, b)
    a, b = (class_labels(num, dim + 1, seed=seed, start=start, impl=i) for i in both)
    assert a.dtype == torch.int64
    assert torch.equal(a, b)


def test_the_same_bits_on_every_instruction_set(impl: str) -> None:
    for num, dim in ((300, 128), (70, 13), (9, 3), (1, 1)):
        for truncation in (None, 0.5):
            options = {"seed": 2**64 - 5, "start": 2**33, "truncation": truncation}
            found = latents(num, dim, **options, impl=impl)
            assert torch.equal(found, latents(num, dim, **options, impl="reference"))
        assert torch.equal(
            uniforms(num, dim, seed=3, impl=impl), uniforms(num, dim, seed=3, impl="reference")
        )
    labels = class_labels(5000, 1000, seed=3, impl=impl)
    assert torch.equal(labels, class_labels(5000, 1000, seed=3, impl="reference"))


def test_the_same_bits_with_any_number_of_threads(impl: str) -> None:
    calls = [
        lambda: latents(2000, 130, seed=1, impl=impl),
        lambda: uniforms(2000, 130, seed=1, impl=impl),
        lambda: class_labels(300_000, 77, seed=1, impl=impl),
    ]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [call() for call in calls]
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(call(), e) for call, e in zip(calls, expected, strict=True))
    finally:
        torch.set_num_threads(before)


@given(
    cuts=st.lists(st.integers(0, 60), max_size=5),
    seed=SEEDS,
    start=STARTS,
    truncation=st.none() | st.just(0.5),
    automatic=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_any_split_gives_the_same_rows(
    cuts: list[int], seed: int, start: int, truncation: float | None, automatic: bool
) -> None:
    impl = None if automatic else "reference"
    edges = [0, *sorted(cuts), 60]
    calls = [
        partial(latents, dim=5, seed=seed, truncation=truncation, impl=impl),
        partial(uniforms, dim=6, seed=seed, impl=impl),
        partial(class_labels, num_classes=1000, seed=seed, impl=impl),
    ]
    for call in calls:
        parts = [call(b - a, start=start + a) for a, b in itertools.pairwise(edges)]
        assert torch.equal(torch.cat(parts), call(60, start=start))


def test_a_wider_row_begins_with_the_narrower_one(impl: str) -> None:
    wide = latents(7, 130, seed=1, impl=impl)
    for dim in (1, 4, 6, 129):
        assert torch.equal(latents(7, dim, seed=1, impl=impl), wide[:, :dim])


def test_a_start_in_a_tensor(impl: str) -> None:
    for start in (0, 17, 2**40):
        for tensor in (torch.tensor(start), torch.tensor([start])):
            assert torch.equal(
                latents(5, 6, seed=2, start=tensor, impl=impl),
                latents(5, 6, seed=2, start=start, impl=impl),
            )
            assert torch.equal(
                class_labels(5, 6, seed=2, start=tensor, impl=impl),
                class_labels(5, 6, seed=2, start=start, impl=impl),
            )


def test_streams_and_seeds_are_apart(impl: str) -> None:
    u = uniforms(100, 8, seed=1, impl=impl)
    z = latents(100, 8, seed=1, impl=impl)
    # The sign is a word's lowest bit: if both shared a stream, it would follow from the uniform number's word.
    signs = (
        reference.random_words(torch.arange(100), 8, seed=1, stream=reference.STREAM_UNIFORMS) & 1
    )
    agree = ((z < 0) == signs.bool()).float().mean()
    assert abs(agree - 0.5) < 0.1
    for other in (0, 2, 1 + 2**32, 2**64 - 1):
        assert not torch.equal(uniforms(100, 8, seed=other, impl=impl), u)
    assert not torch.equal(uniforms(1, 8, seed=1, start=2**32, impl=impl), u[:1])


@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bits_on_a_gpu() -> None:
    for num, dim, seed, start in (
        (256, 128, 1, 0),
        (37, 13, 2**64 - 1, 2**62),
        (2000, 257, 5, 2**32 - 3),
    ):
        address = {"seed": seed, "start": start}
        for truncation in (None, 0.5):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                options = {**address, "truncation": truncation, "dtype": dtype}
                found = latents(num, dim, **options, device="cuda", impl="triton")
                assert torch.equal(found.cpu(), latents(num, dim, **options, impl="reference"))
        found = class_labels(num, 1000, **address, device="cuda", impl="triton")
        assert torch.equal(found.cpu(), class_labels(num, 1000, **address, impl="reference"))
        found = uniforms(num, dim, **address, device="cuda", impl="triton")
        assert torch.equal(found.cpu(), uniforms(num, dim, **address, impl="reference"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_reads_its_start() -> None:
    start = torch.zeros((), dtype=torch.int64, device="cuda")
    latents(64, 32, seed=1, start=start, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = latents(64, 32, seed=1, start=start, device="cuda")
    for row in (0, 64, 1000):
        start.fill_(row)
        graph.replay()
        assert torch.equal(out.cpu(), latents(64, 32, seed=1, start=row))
