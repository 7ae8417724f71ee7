"""The C++ implementations against the references, and the references against code written elsewhere."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ptgm_fast import kernels
from ptgm_fast.kernels import dispatch

needs_cpp = pytest.mark.skipif(
    bool(dispatch.why_not("consistency", "cpu", "cpu")),
    reason=dispatch.why_not("consistency", "cpu", "cpu"),
)
METHODS = ["uda", "fixmatch", "soft-pseudo-label", "consistency"]
SHAPES = [(0, 3), (1, 2), (7, 10), (64, 10), (33, 1000), (2, 21841)]


def logits_of(
    num: int, num_classes: int, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return (4 * torch.randn(num, num_classes, generator=torch.Generator().manual_seed(seed))).to(
        dtype
    )


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_consistency(shape: tuple[int, int], method: str, dtype: torch.dtype) -> None:
    weak, strong = logits_of(*shape, 1, dtype), logits_of(*shape, 2, dtype)
    options = {"method": method, "temperature": 0.5, "threshold": 0.4}
    results = []
    for impl in ("reference", "cpu"):
        leaf = strong.clone().requires_grad_()
        loss = kernels.consistency(weak, leaf, impl=impl, **options)
        weights = torch.linspace(0.5, 2, shape[0])
        (gradient,) = torch.autograd.grad((loss * weights).sum(), leaf)
        results.append((loss.detach(), gradient.float()))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-4, rtol=1e-4)
    eps = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(results[1][1], results[0][1], atol=eps, rtol=eps)


@needs_cpp
def test_consistency_of_weighted_samples_and_class_thresholds() -> None:
    weak, strong = logits_of(50, 6, 3), logits_of(50, 6, 4)
    options = {"class_thresholds": torch.linspace(0.3, 0.99, 6), "sample_weight": torch.rand(50)}
    a, b = (
        kernels.consistency(weak, strong, impl=impl, **options) for impl in ("reference", "cpu")
    )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (b == 0).any()


@needs_cpp
@pytest.mark.parametrize("method", METHODS)
def test_consistency_of_extreme_logits(method: str) -> None:
    weak = torch.tensor([[1e4, -1e4, 0.0], [0.0, float("-inf"), 1.0], [5.0, 4.0, -1e4]])
    strong = torch.tensor([[-1e4, 1e4, 0.0], [3.0, float("-inf"), 1.0], [1e4, 4.0, -1e4]])
    a, b = (
        kernels.consistency(weak, strong, method=method, threshold=0.0, temperature=1.0, impl=impl)
        for impl in ("reference", "cpu")
    )
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    assert torch.isfinite(b).all()


def test_consistency_is_torchs_divergence() -> None:
    weak, strong = logits_of(40, 9, 5), logits_of(40, 9, 6)
    theirs = F.kl_div(strong.log_softmax(1), (weak / 0.4).softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(
        kernels.consistency(weak, strong, threshold=0.0, temperature=0.4),
        theirs,
        atol=1e-5,
        rtol=1e-5,
    )


@needs_cpp
@given(st.integers(0, 40), st.integers(1, 60), st.floats(0.2, 3), st.floats(0, 1))
@settings(deadline=None)
def test_pseudo_label(num: int, num_classes: int, temperature: float, threshold: float) -> None:
    logits = logits_of(num, num_classes, num)
    a, b = (
        kernels.pseudo_label(logits, temperature=temperature, threshold=threshold, impl=impl)
        for impl in ("reference", "cpu")
    )
    assert torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.confidence, b.confidence, atol=1e-6, rtol=1e-5)
    unclear = (a.confidence - threshold).abs() < 1e-5
    assert torch.equal(a.mask | unclear, b.mask | unclear)


@needs_cpp
@pytest.mark.parametrize("top_k", [None, 1, 5])
@pytest.mark.parametrize(
    "shape", [(0, 4, 3), (1, 1, 1), (9, 52, 32), (5, 1000, 128), (3, 77, 13)], ids=str
)
def test_class_mix(shape: tuple[int, int, int], top_k: int | None) -> None:
    num, num_classes, dim = shape
    logits, table = logits_of(num, num_classes, 7), torch.randn(num_classes, dim)
    k = None if top_k is None else min(top_k, num_classes)
    a, b = (
        kernels.class_mix(logits, table, temperature=0.7, top_k=k, impl=i)
        for i in ("reference", "cpu")
    )
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    if k is None:
        torch.testing.assert_close(b, (logits / 0.7).softmax(1) @ table, atol=1e-5, rtol=1e-5)


@needs_cpp
@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
@settings(deadline=None)
def test_random_numbers(num: int, dim: int, seed: int, start: int) -> None:
    for truncation in (None, 0.5):
        a, b = (
            kernels.latents(num, dim, seed=seed, start=start, truncation=truncation, impl=impl)
            for impl in ("reference", "cpu")
        )
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-6)
    bits = [
        kernels.uniforms(num, dim, seed=seed, start=start, impl=impl)
        for impl in ("reference", "cpu")
    ]
    assert torch.equal(*bits)
    labels = [
        kernels.class_labels(num, dim, seed=seed, start=start, impl=impl)
        for impl in ("reference", "cpu")
    ]
    assert torch.equal(*labels)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 20))
@settings(deadline=None)
def test_a_row_depends_on_its_index_only(before: int, start: int, after: int) -> None:
    whole = kernels.latents(before + after, 5, seed=9, start=start)
    parts = [
        kernels.latents(before, 5, seed=9, start=start),
        kernels.latents(after, 5, seed=9, start=start + before),
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("truncation", [None, 0.5, 1.0])
def test_latents_follow_scipys_distributions(truncation: float | None) -> None:
    stats = pytest.importorskip("scipy.stats")
    sample = kernels.latents(20000, 10, seed=3, truncation=truncation).double().flatten().numpy()
    law = stats.norm() if truncation is None else stats.truncnorm(-2, 2, scale=truncation)
    assert stats.kstest(sample, law.cdf).pvalue > 1e-3
    assert sample.std() == pytest.approx(law.std(), rel=0.01)
    if truncation is not None:
        assert np.abs(sample).max() <= 2 * truncation + 1e-6


def test_labels_are_uniform() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = kernels.class_labels(52000, 52, seed=1).bincount(minlength=52)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@needs_cpp
def test_threads_change_nothing() -> None:
    weak, strong = logits_of(300, 100, 1), logits_of(300, 100, 2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                (
                    kernels.consistency(weak, strong),
                    kernels.latents(500, 64, seed=4),
                    kernels.class_mix(weak, strong.T),
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _in_a_fork(queue: multiprocessing.Queue) -> None:
    # NumPy's sum: torch's own parallel regions do hang in a forked process.
    queue.put(float(kernels.latents(4000, 64, seed=4).numpy().sum()))


@needs_cpp
def test_a_forked_worker_does_not_hang() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = float(kernels.latents(4000, 64, seed=4).numpy().sum())
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue = context.Queue()
    worker = context.Process(target=_in_a_fork, args=(queue,))
    worker.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(expected)
    finally:
        worker.kill()
        worker.join()
        torch.set_num_threads(before)


def test_named_implementations_never_fall_back() -> None:
    with pytest.raises(ValueError, match="unknown implementation"):
        kernels.pseudo_label(torch.zeros(1, 2), impl="fast")
    with pytest.raises(RuntimeError, match="triton"):
        kernels.pseudo_label(torch.zeros(1, 2), impl="triton")
