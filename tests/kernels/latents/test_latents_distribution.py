"""The distributions of `latents`, `uniforms` and `class_labels`, against scipy and exact integers; their behaviour as ops."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from ptgm_fast.kernels import class_labels, dispatch, latents, uniforms
from ptgm_fast.kernels.latents import reference

NUM = 400_000
CPU = torch.device("cpu")
OPS = torch.ops.ptgm_fast


def magnitude_words() -> torch.Tensor:
    """Words over all magnitudes: the extremes, the point where centre and tail meet, and many in between."""
    edge = int((1 - reference.CENTRE_LIMIT) * 2**31)
    k = torch.cat(
        [
            torch.arange(0, 3000),
            torch.arange(2**31 - 3000, 2**31),
            torch.arange(edge - 3000, edge + 3000),
            (
                2.0**31
                * torch.rand(
                    100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
                )
            ).long(),
            (2.0 ** torch.linspace(0, 31, 20_000, dtype=torch.float64)).long().clamp(max=2**31 - 1),
        ]
    )
    return torch.cat([2 * k, 2 * k + 1])


def test_the_inverse_distribution_function() -> None:
    words = magnitude_words()
    upper_tail = ((words >> 1).double() + 0.5) / 2**32
    exact = -special.ndtri(upper_tail.numpy()) * np.where(words & 1, -1, 1)
    found = reference.normal_from_words(words, None).double().numpy()
    np.testing.assert_allclose(found, exact, rtol=6e-7)
    assert np.abs(found).max() < 6.34


@pytest.mark.parametrize("truncation", [0.04, 1.0, 2.5])
def test_the_inverse_distribution_function_of_the_truncated_normal(truncation: float) -> None:
    words = magnitude_words()
    quantile = ((words >> 1).double() + 0.5) / 2**32
    exact = stats.truncnorm.ppf(quantile.numpy(), -2, 2) * np.where(words & 1, 1, -1)
    found = reference.normal_from_words(words, truncation).double().numpy()
    np.testing.assert_allclose(found, truncation * exact, rtol=8e-7, atol=1e-15)
    assert np.abs(found).max() <= 2 * truncation


def test_a_normal_distribution() -> None:
    z = latents(NUM // 100, 100, seed=20).double().flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-3
    # Four standard errors of each moment.
    assert abs(z.mean()) < 4 / NUM**0.5
    assert abs(z.var() - 1) < 4 * (2 / NUM) ** 0.5
    assert abs(stats.skew(z)) < 4 * (6 / NUM) ** 0.5
    assert abs(stats.kurtosis(z)) < 4 * (24 / NUM) ** 0.5
    for bound in (2.0, 3.0, 4.0):
        beyond = int((np.abs(z) > bound).sum())
        assert stats.binomtest(beyond, NUM, 2 * stats.norm.sf(bound)).pvalue > 1e-3


@pytest.mark.parametrize("truncation", [0.5, 1.0])
def test_a_truncated_normal_distribution(truncation: float) -> None:
    z = latents(NUM // 100, 100, seed=21, truncation=truncation).double().flatten().numpy()
    law = stats.truncnorm(-2, 2, scale=truncation)
    assert stats.kstest(z, law.cdf).pvalue > 1e-3
    mean, variance, _, kurtosis = law.stats("mvsk")
    assert abs(z.mean() - mean) < 4 * (variance / NUM) ** 0.5
    assert abs(z.var() - variance) < 4 * variance * ((kurtosis + 2) / NUM) ** 0.5
    assert np.abs(z).max() <= 2 * truncation
    for quantile in (0.9, 0.99, 0.999):
        beyond = int((z > law.ppf(quantile)).sum())
        assert stats.binomtest(beyond, NUM, 1 - quantile).pvalue > 1e-3


def test_neighbours_are_uncorrelated() -> None:
    z = latents(4000, 100, seed=22).double()
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z[:, 4:], z[:, :-4])):
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5
    other = latents(4000, 100, seed=23).double()
    assert abs((z * other).mean()) < 4 / z.numel() ** 0.5


def test_uniform_numbers() -> None:
    u = uniforms(NUM // 100, 100, seed=24)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    assert stats.kstest(u.double().flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("num_classes", [1, 2, 10, 1000])
def test_uniform_labels(num_classes: int) -> None:
    labels = class_labels(NUM, num_classes, seed=25)
    assert labels.dtype == torch.int64
    counts = labels.bincount(minlength=num_classes)
    assert len(counts) == num_classes
    assert num_classes == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**62))
@settings(max_examples=50, deadline=None)
def test_labels_are_exact(num_classes: int, seed: int, start: int) -> None:
    rows = torch.arange(start, start + 5)
    words = reference.random_words(rows, 2, seed=seed, stream=reference.STREAM_LABELS).tolist()
    expected = [num_classes * (high << 32 | low) >> 64 for high, low in words]
    assert class_labels(5, num_classes, seed=seed, start=start).tolist() == expected


def test_reduced_precision_is_rounded_float32() -> None:
    z = latents(50, 33, seed=1)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(latents(50, 33, seed=1, dtype=dtype), z.to(dtype))


def test_torchs_defaults_change_nothing() -> None:
    z, labels = latents(5, 6, seed=1), class_labels(5, 6, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            for impl in (None, "reference"):
                assert torch.equal(latents(5, 6, seed=1, impl=impl), z)
                assert torch.equal(class_labels(5, 6, seed=1, impl=impl), labels)
                assert uniforms(5, 6, seed=1, impl=impl).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latents(1, 1, seed=-1), r"seed must lie in \[0, 2\*\*64\), got -1"),
        (lambda: latents(1, 1, seed=2**64), "seed must lie in"),
        (lambda: latents(-1, 1, seed=0), "sizes must not be negative"),
        (lambda: uniforms(1, -1, seed=0), "sizes must not be negative"),
        (lambda: latents(1, 1, seed=0, start=-1), r"rows must lie in \[0, 2\*\*63\)"),
        (lambda: latents(2, 1, seed=0, start=2**63 - 1), "rows must lie in"),
        (lambda: latents(1, 1, seed=0, start=torch.tensor(1.0)), "must hold one int64"),
        (lambda: latents(1, 1, seed=0, start=torch.tensor([1, 2])), "must hold one int64"),
        (lambda: latents(1, 1, seed=0, truncation=0.0), "truncation must be a positive number"),
        (
            lambda: latents(1, 1, seed=0, truncation=float("nan")),
            "truncation must be a positive number",
        ),
        (lambda: latents(1, 1, seed=0, dtype=torch.int32), "dtype must be one of torch.float32"),
        (lambda: class_labels(1, 0, seed=0), r"num_classes must lie in \[1, 2\*\*31\)"),
        (lambda: class_labels(1, 2**31, seed=0), "num_classes must lie in"),
        (lambda: latents(1, 1, seed=0, impl="cuda"), "unknown implementation 'cuda'"),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_named_implementation_never_falls_back() -> None:
    with pytest.raises(dispatch.ImplementationError, match="CUDA tensors"):
        latents(1, 1, seed=0, impl="triton")


@pytest.mark.parametrize("impl", ["", "reference"])
@pytest.mark.parametrize("counter", [None, torch.tensor(2)])
def test_opcheck(impl: str, counter: torch.Tensor | None) -> None:
    torch.library.opcheck(OPS.uniforms.default, (3, 5, -1, 4, counter, CPU, impl))
    torch.library.opcheck(OPS.class_labels.default, (3, 5, -1, 4, counter, CPU, impl))
    for truncation, dtype in ((None, torch.float32), (0.5, torch.bfloat16)):
        torch.library.opcheck(
            OPS.latents.default, (3, 5, -1, 4, counter, truncation, dtype, CPU, impl)
        )


def test_compiles_into_one_graph() -> None:
    def draw(seed: int, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        z = latents(6, 8, seed=seed, start=start, truncation=0.5)
        return (
            2 * z,
            class_labels(6, 10, seed=seed, start=start) + 1,
            uniforms(6, 4, seed=seed, start=start) - 1,
        )

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for seed in (3, 2**63 + 1, 2**64 - 1):
        for start in (0, 6, 12, 18):
            assert all(
                torch.equal(a, b)
                for a, b in zip(compiled(seed, start), draw(seed, start), strict=True)
            )


def test_shapes_without_data() -> None:
    with torch._subclasses.FakeTensorMode():
        z = latents(4, 5, seed=1, device="cuda", dtype=torch.bfloat16)
        labels = class_labels(4, 5, seed=1, device="cuda")
    assert (z.shape, z.dtype, z.device.type) == ((4, 5), torch.bfloat16, "cuda")
    assert (labels.shape, labels.dtype, labels.device.type) == ((4,), torch.int64, "cuda")


def test_a_forked_worker_does_not_hang() -> None:
    script = """
import os, sys, numpy, torch
from ptgm_fast.kernels import class_labels, latents
torch.set_num_threads(2)
z, labels = latents(4000, 128, seed=1), class_labels(500_000, 10, seed=1)
child = os.fork()
if child == 0:
    # Compared by NumPy: torch's own parallel loops do hang in a forked process.
    same = numpy.array_equal(latents(4000, 128, seed=1).numpy(), z.numpy())
    same = same and numpy.array_equal(class_labels(500_000, 10, seed=1).numpy(), labels.numpy())
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
