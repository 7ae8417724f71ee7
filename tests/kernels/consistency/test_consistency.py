"""`consistency`: the definition against PyTorch's own losses, every implementation against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import isolated
from helpers.consistency_cases import logits, loss_and_gradient
from ptgm_fast.kernels import consistency, dispatch
from ptgm_fast.kernels.consistency import METHODS, _consistency, reference

INTERPRETED = isolated.checks("consistency/interpreted.py", interpret=True)
COMPILED = isolated.checks("consistency/compiled.py", interpret=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (3, 2), (1, 17), (64, 10), (37, 48), (37, 49), (5, 129), (9, 1000), (3, 21841)]
NO_EXTENSION = dispatch.why_not("consistency", "cpu", "cpu")
NAN, INF = float("nan"), float("inf")


def clear_threshold(weak: Tensor) -> float:
    """A threshold that some rows reach and none is close to, so that rounding does not decide."""
    confidence = weak.double().softmax(1).amax(1).sort().values
    gaps = confidence.diff()
    if len(gaps) == 0 or gaps.max() < 1e-4:
        return 0.0
    k = int(gaps.argmax())
    return float((confidence[k] + confidence[k + 1]) / 2)


def plain(weak: Tensor, strong: Tensor, method: str, temperature: float, counts: Tensor) -> Tensor:
    """The usual PyTorch code, in the logits' own dtype."""
    p_weak = weak.softmax(1)
    if method == "fixmatch":
        loss = F.cross_entropy(strong, p_weak.argmax(1), reduction="none")
    elif method == "mse":
        loss = F.mse_loss(strong.softmax(1), p_weak, reduction="none").mean(1)
    else:
        target = (weak / temperature).softmax(1)
        loss = F.kl_div(strong.log_softmax(1), target, reduction="none").sum(1)
    return loss * counts.to(loss.dtype)


# The definition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_equals_torch_s_own_losses(impl: str, method: str) -> None:
    weak, strong = logits((40, 12)), logits((40, 12), seed=1)
    p_weak, log_p = weak.softmax(1), strong.log_softmax(1)
    confidence, label = p_weak.max(1)
    counts = confidence >= 0.7
    soft = F.kl_div(log_p, (weak / 0.5).softmax(1), reduction="none").sum(1)
    expected = {
        "uda": soft * counts,
        "fixmatch": F.cross_entropy(strong, label, reduction="none") * counts,
        "soft-pseudo-label": F.kl_div(log_p, p_weak, reduction="none").sum(1),
        "mse": (p_weak - strong.softmax(1)).pow(2).mean(1),
    }
    loss = consistency(weak, strong, method=method, temperature=0.5, threshold=0.7, impl=impl)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected[method], rtol=1e-5, atol=1e-6)
    assert 0 < int(counts.sum()) < 40


@pytest.mark.parametrize(("method", "default"), [("uda", 0.8), ("fixmatch", 0.95)])
def test_thresholds_by_default(impl: str, method: str, default: float) -> None:
    weak, strong = logits((60, 5)), logits((60, 5), seed=1)
    loss = consistency(weak, strong, method=method, impl=impl)
    assert torch.equal(loss > 0, weak.softmax(1).amax(1) >= default)
    assert torch.equal(loss, consistency(weak, strong, method=method, threshold=default, impl=impl))


def test_class_thresholds_are_of_the_predicted_class(impl: str) -> None:
    weak, strong = logits((60, 4)), logits((60, 4), seed=1)
    thresholds = torch.tensor([0.0, 0.4, 0.7, 2.0])
    confidence, label = weak.softmax(1).max(1)
    for method in METHODS:
        loss = consistency(weak, strong, method=method, class_thresholds=thresholds, impl=impl)
        assert torch.equal(loss > 0, confidence >= thresholds[label])


def test_sample_weights_multiply_loss_and_gradient(impl: str) -> None:
    weak, strong, weight = logits((20, 70)), logits((20, 70), seed=1), torch.rand(20)
    for method in METHODS:
        options: dict[str, Any] = {"method": method, "threshold": 0.3, "impl": impl}
        loss, weighted = loss_and_gradient(weak, strong, weight, **options)
        options["sample_weight"] = weight
        got_loss, got_gradient = loss_and_gradient(weak, strong, torch.ones(20), **options)
        torch.testing.assert_close(got_loss, loss * weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(got_gradient, weighted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_closed_gradient_is_that_of_the_loss(method: str) -> None:
    weak, strong = logits((12, 7), torch.float64), logits((12, 7), torch.float64, seed=1)
    strong.requires_grad_()
    options = (torch.rand(7) * 0.5, torch.rand(12), method, 0.5, clear_threshold(weak))
    loss = reference.consistency(weak, strong, *options)
    (expected,) = torch.autograd.grad(loss.sum(), strong)
    gradient = reference.consistency_gradient(weak, strong, *options)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


# Every implementation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_error_is_at_most_twice_that_of_plain_pytorch(
    isa: str, shape: tuple[int, int], dtype: torch.dtype, method: str
) -> None:
    temperature = 0.4 if method == "uda" else 1.0
    ours, theirs = [0.0, 0.0], [0.0, 0.0]
    # The largest error of several draws: a single draw may favour either side.
    for seed in range(0, 8, 2):
        weak, strong = logits(shape, dtype, seed), logits(shape, dtype, seed + 1)
        threshold = clear_threshold(weak) if method in ("uda", "fixmatch") else 0.0
        counts = weak.double().softmax(1).amax(1) >= threshold
        grad = torch.linspace(0.5, 1, shape[0]) / shape[0]

        def run(
            kind: torch.dtype, weak: Tensor, strong: Tensor, counts: Tensor, grad: Tensor
        ) -> tuple[Tensor, Tensor]:
            leaf = strong.to(kind).requires_grad_()
            loss = plain(weak.to(kind), leaf, method, temperature, counts)
            return loss.detach(), torch.autograd.grad(loss, leaf, grad.to(loss.dtype))[0]

        exact = run(torch.float64, weak, strong, counts, grad)
        plainly = run(dtype, weak, strong, counts, grad)
        fused = loss_and_gradient(
            weak, strong, grad, method=method, threshold=threshold, impl="cpu"
        )
        assert fused[0].dtype == torch.float32
        assert fused[1].dtype == dtype
        # The result itself is rounded: to float32 the loss, to the logits' dtype the gradient.
        for k, kind in enumerate((torch.float32, dtype)):
            rounding = torch.finfo(kind).eps * exact[k].abs().max().item()
            ours[k] = max(ours[k], (fused[k] - exact[k]).abs().max().item() - rounding)
            theirs[k] = max(theirs[k], (plainly[k] - exact[k]).abs().max().item())
    assert ours[0] <= 2 * theirs[0]
    assert ours[1] <= 2 * theirs[1]


@pytest.mark.skipif(bool(NO_EXTENSION), reason=NO_EXTENSION)
@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 40),
    classes=st.integers(1, 300),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from(DTYPES),
    extras=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    num: int, classes: int, method: str, dtype: torch.dtype, extras: bool, seed: int
) -> None:
    weak, strong = logits((num, classes), dtype, seed), logits((num, classes), dtype, seed + 1)
    options: dict[str, Any] = {"method": method, "threshold": clear_threshold(weak) if num else 0.5}
    if extras:
        options["sample_weight"] = torch.rand(num)
        # Above or below what any row can reach, so that rounding does not decide.
        options["class_thresholds"] = torch.rand(classes).round() * 1.1
    grad = torch.randn(num)
    ours = loss_and_gradient(weak, strong, grad, impl="cpu", **options)
    theirs = loss_and_gradient(weak, strong, grad, impl="reference", **options)
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-5, atol=2e-6)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(ours[1], theirs[1], rtol=2 * tolerance, atol=tolerance)


@pytest.mark.parametrize("classes", [10, 300])
def test_layouts_are_read_in_place_or_copied(classes: int) -> None:
    if NO_EXTENSION:
        pytest.skip(NO_EXTENSION)
    wide, ones = logits((24, 2 * classes + 3)), torch.ones(24)
    weak, strong = wide[:, 1 : classes + 1], wide[:, -classes:]
    expected = loss_and_gradient(weak.contiguous(), strong.contiguous(), ones, impl="cpu")
    columns = (t.t().contiguous().t() for t in (weak, strong))
    for pair in ((weak, strong), tuple(columns)):
        actual = loss_and_gradient(*pair, ones, impl="cpu")
        for got, want in zip(actual, expected, strict=True):
            assert torch.equal(got, want)


def test_dtypes_may_differ(impl: str) -> None:
    weak, strong = logits((8, 30)), logits((8, 30), torch.bfloat16, seed=1)
    loss, gradient = loss_and_gradient(weak, strong, torch.ones(8), impl=impl)
    expected = consistency(weak, strong.float(), impl="reference")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert gradient.dtype == torch.bfloat16


# Extreme logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("method", METHODS)
def test_huge_logits(impl_isa: str, method: str, classes: int) -> None:
    weak, strong = (torch.sign(logits((30, classes), seed=k)) * 1e4 for k in (0, 1))
    weak[:, 0], strong[::2, 0], strong[1::2, 1] = 1.1e4, 1.1e4, 1.1e4
    loss, gradient = loss_and_gradient(weak, strong, torch.ones(30), method=method, impl=impl_isa)
    expected = plain(weak.double(), strong.double(), method, 0.4, torch.ones(30))
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [5, 100])
def test_classes_ruled_out(impl_isa: str, classes: int) -> None:
    """A class at -inf in both views behaves as if absent; at -inf in the target alone it adds nothing."""
    weak, strong = logits((30, classes)), logits((30, classes), seed=1)
    weak[:, -2:], strong[:, -1] = -INF, -INF
    for method in METHODS:
        options: dict[str, Any] = {"method": method, "threshold": 0.3, "impl": impl_isa}
        loss, gradient = loss_and_gradient(weak, strong, torch.ones(30), **options)
        absent = loss_and_gradient(weak[:, :-1], strong[:, :-1], torch.ones(30), **options)
        share = (classes - 1) / classes if method == "mse" else 1
        torch.testing.assert_close(loss, absent[0] * share, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient[:, :-1], absent[1] * share, rtol=1e-5, atol=1e-6)
        assert (gradient[:, -1] == 0).all()
        assert loss.isfinite().all()
    # A class that the target wants and the strong view excludes has infinite loss.
    strong[0, weak[0].argmax()] = -INF
    for method in ("uda", "fixmatch"):
        options = {"method": method, "threshold": 0.0, "impl": impl_isa}
        loss, gradient = loss_and_gradient(weak, strong, torch.ones(30), **options)
        assert loss[0] == INF
        assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("method", METHODS)
def test_nan_is_not_hidden_where_it_is_read(impl_isa: str, method: str, classes: int) -> None:
    weak, strong = torch.zeros(7, classes), logits((7, classes))
    weak[:, 0] = 30
    weak[0, -1], weak[1, 1], weak[2] = NAN, INF, -INF
    strong[3, -1], strong[4, 1], strong[5] = NAN, INF, -INF
    loss, gradient = loss_and_gradient(weak, strong, torch.ones(7), method=method, impl=impl_isa)
    assert loss[:6].isnan().all()
    assert (gradient[:3] == 0).all()
    assert gradient[3:6].isnan().all()
    assert loss[6].isfinite()
    assert gradient[6].isfinite().all()


@pytest.mark.parametrize("classes", [5, 100])
def test_what_does_not_count_is_not_read(impl_isa: str, classes: int) -> None:
    weak, strong = torch.zeros(40, classes), torch.full((40, classes), NAN)
    counts = torch.arange(40) % 3 == 0
    weak[counts, 1], strong[counts] = 30, 0.0
    for method in ("uda", "fixmatch"):
        loss, gradient = loss_and_gradient(
            weak, strong, torch.ones(40), method=method, impl=impl_isa
        )
        assert torch.equal(loss > 0, counts)
        assert torch.equal(gradient.ne(0).any(1), counts)


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_flow_to_the_strong_logits_only(impl: str) -> None:
    tensors = [logits((6, 5)), logits((6, 5), seed=1), torch.rand(5), torch.rand(6)]
    weak, strong, thresholds, weight = (t.requires_grad_() for t in tensors)
    loss = consistency(weak, strong, class_thresholds=thresholds, sample_weight=weight, impl=impl)
    loss.sum().backward()
    assert strong.grad is not None
    assert weak.grad is thresholds.grad is weight.grad is None
    with torch.no_grad():
        assert not consistency(weak, strong, impl=impl).requires_grad
    assert not consistency(weak, strong.detach(), impl=impl).requires_grad


def test_backward_twice_and_with_any_strides(impl: str) -> None:
    weak, strong = logits((16, 9)), logits((16, 9), seed=1).requires_grad_()
    loss = consistency(weak, strong, threshold=0.3, impl=impl)
    grads = [torch.autograd.grad(loss.mean(), strong, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)
    spaced = torch.full((16, 3), 1 / 16)[:, 1]
    torch.testing.assert_close(torch.autograd.grad(loss, strong, spaced)[0], grads[0])


def test_a_second_derivative_is_refused_not_wrong() -> None:
    weak, strong = logits((4, 3)), logits((4, 3), seed=1).requires_grad_()
    loss = consistency(weak, strong, threshold=0.0, impl="reference").sum()
    (gradient,) = torch.autograd.grad(loss, strong, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), strong)[0].abs().max() > 0
    if NO_EXTENSION:
        pytest.skip(NO_EXTENSION)
    loss = consistency(weak, strong, threshold=0.0, impl="cpu").sum()
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(loss, strong, create_graph=True)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method: str) -> None:
    weak = logits((5, 4), torch.float64)
    strong = logits((5, 4), torch.float64, seed=1).requires_grad_()
    weight, thresholds = torch.rand(5, dtype=torch.float64), torch.tensor([0.0, 0.9, 0.2, 0.4])
    extras = {"class_thresholds": thresholds, "sample_weight": weight}

    def loss(s: Tensor) -> Tensor:
        return consistency(weak, s, method=method, impl="reference", **extras)

    def through_the_op(s: Tensor) -> Tensor:
        return _consistency.op(weak, s, thresholds, weight, method, 0.4, 0.8, True, "reference")[0]

    assert torch.autograd.gradcheck(loss, (strong,))
    assert torch.autograd.gradcheck(through_the_op, (strong,))


# Threads, empty batches, float64 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num", "classes"), [(4000, 10), (300, 1000)])
def test_the_number_of_threads_changes_nothing(isa: str, num: int, classes: int) -> None:
    weak, strong = logits((num, classes)), logits((num, classes), seed=1)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(weak, strong, torch.ones(num), impl="cpu"))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_an_empty_batch(impl: str) -> None:
    empty = torch.zeros(0, 5)
    loss, gradient = loss_and_gradient(empty, empty, torch.zeros(0), impl=impl)
    assert loss.shape == (0,)
    assert gradient.shape == (0, 5)


def test_float64_is_computed_in_float64_or_refused() -> None:
    weak, strong = logits((5, 4), torch.float64), logits((5, 4), torch.float64, seed=1)
    assert consistency(weak, strong).dtype == torch.float64
    if not NO_EXTENSION:
        with pytest.raises(dispatch.ImplementationError, match="float64 needs 'reference'"):
            consistency(weak, strong, impl="cpu")


# Triton --------------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_on_a_gpu(shape: tuple[int, int], dtype: torch.dtype, method: str) -> None:
    weak, strong = logits(shape, dtype).cuda(), logits(shape, dtype, seed=1).cuda()
    grad = torch.rand(shape[0], device="cuda")
    options: dict[str, Any] = {"method": method, "threshold": clear_threshold(weak.cpu())}
    ours = loss_and_gradient(weak, strong, grad, impl="triton", **options)
    theirs = loss_and_gradient(weak, strong, grad, impl="reference", **options)
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(ours[1], theirs[1])
