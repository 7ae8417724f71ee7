"""`consistency` on Triton's interpreter: numerics against the reference, and its memory accesses."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from helpers import memory_guard
from ptgm_fast.kernels.consistency import METHODS, _consistency, consistency, triton_impl

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# In registers, and in blocks.
IN_REGISTERS, IN_BLOCKS = (11, 60), (3, triton_impl.MAX_TILE + 500)


def logits(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Alternate confident and unconfident rows; the first class of a confident row is the most likely in both views."""
    torch.manual_seed(seed + sum(shape))
    values = torch.randn(shape)
    values[::2, 0] += 15
    return values.to(dtype)


def run(weak: Tensor, strong: Tensor, impl: str, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = strong.detach().requires_grad_()
    loss = consistency(weak, leaf, impl=impl, **options)
    grad = torch.linspace(0.5, 2, len(weak))
    return loss.detach(), torch.autograd.grad(loss, leaf, grad)[0]


def assert_like_the_reference(
    weak: Tensor,
    strong: Tensor,
    tolerance: float = 1e-6,
    kind: torch.dtype = torch.float64,
    **options: Any,
) -> None:
    """Compare with the reference in float64: with thousands of classes, it is less accurate itself in float32."""
    actual = run(weak, strong, "triton", **options)
    loss, gradient = run(weak.to(kind), strong.to(kind), "reference", **options)
    torch.testing.assert_close(actual[0], loss.float(), rtol=1e-5, atol=2e-6)
    expected = gradient.to(strong.dtype)
    torch.testing.assert_close(actual[1], expected, rtol=2 * tolerance, atol=tolerance)


def check_methods_shapes_and_dtypes() -> None:
    shapes = (IN_REGISTERS, (1, 1), (130, 2), (3, 17), (0, 5))
    cases = [(shape, dtype) for shape in shapes for dtype in TOLERANCE]
    cases += [(IN_BLOCKS, torch.float32), ((1, 21841), torch.bfloat16)]
    for (shape, dtype), method in itertools.product(cases, METHODS):
        weak, strong = logits(shape, dtype), logits(shape, dtype, seed=1)
        assert_like_the_reference(weak, strong, TOLERANCE[dtype], method=method)


def check_weights_and_class_thresholds() -> None:
    for shape in (IN_REGISTERS, IN_BLOCKS):
        weak, strong = logits(shape), logits(shape, seed=1)
        extras = {
            "sample_weight": torch.rand(shape[0]),
            "class_thresholds": torch.full((shape[1],), 0.9).bfloat16(),
        }
        for method in METHODS:
            assert_like_the_reference(weak, strong, method=method, **extras)


def check_extreme_logits() -> None:
    for shape in (IN_REGISTERS, IN_BLOCKS):
        weak, strong = logits(shape) * 1e3, logits(shape, seed=1) * 1e3
        # Most classes are excluded in both views, so whole blocks are; some in only one of the two.
        weak[:, 2:-3], strong[:, 3:-2] = -torch.inf, -torch.inf
        # In float32, where the same exponentials become 0.
        for method in METHODS:
            assert_like_the_reference(weak, strong, kind=torch.float32, method=method)


def check_nan_is_not_hidden_where_it_is_read() -> None:
    for classes in (60, IN_BLOCKS[1]):
        weak, strong = logits((7, classes)), logits((7, classes), seed=1)
        weak[:, 0] += 30
        weak[0, -1], weak[1, 1], weak[2] = torch.nan, torch.inf, -torch.inf
        strong[3, -1], strong[4, 1], strong[5] = torch.nan, torch.inf, -torch.inf
        for method in METHODS:
            loss, gradient = run(weak, strong, "triton", method=method)
            assert loss[:6].isnan().all()
            assert (gradient[:3] == 0).all()
            assert gradient[3:6].isnan().all()
            assert loss[6].isfinite()
            assert gradient[6].isfinite().all()


def check_strides_and_the_op() -> None:
    wide = logits((6, 130))
    weak, strong = wide[:, 1:41], wide[:, 50:90]
    assert_like_the_reference(weak, strong, threshold=0.1)
    columns = (t.t().contiguous().t() for t in (weak, strong))
    assert_like_the_reference(*columns, threshold=0.1)
    for method in METHODS:
        options = (None, None, method, 0.4, 0.1, True, "triton")
        torch.library.opcheck(_consistency.op, (weak, strong.detach().requires_grad_(), *options))


def check_each_logit_is_read_once_and_those_that_do_not_count_never() -> None:
    weak, strong = logits(IN_REGISTERS), logits(IN_REGISTERS, seed=1)
    counts = weak.softmax(1).amax(1) >= 0.8
    assert 0 < int(counts.sum()) < len(counts)
    rows = counts.numpy()[:, None]
    for method, fill in itertools.product(("uda", "fixmatch"), (False, True)):
        with memory_guard.guard() as launches:
            triton_impl.consistency(weak, strong, None, None, method, 0.4, 0.8, True, fill)
        (only,) = launches
        assert (only["weak"].reads == 1).all()
        assert (only["strong"].reads == rows).all()
        assert (only["gradient"].reads == 0).all()
        assert (only["gradient"].writes == (1 if fill else rows)).all()
        for name in ("loss", "counts"):
            assert (only[name].reads == 0).all()
            assert (only[name].writes == 1).all()


def check_reads_of_rows_in_blocks() -> None:
    weak, strong = logits(IN_BLOCKS), logits(IN_BLOCKS, seed=1)
    passes = {"uda": 2, "fixmatch": 2, "soft-pseudo-label": 2, "mse": 3}
    for method, times in passes.items():
        threshold = 0.8 if method in ("uda", "fixmatch") else 0.0
        rows = (weak.softmax(1).amax(1) >= threshold).numpy()[:, None].astype(int)
        with memory_guard.guard() as launches:
            triton_impl.consistency(weak, strong, None, None, method, 0.4, threshold, True, False)
        (only,) = launches
        assert (only["weak"].reads == 1 + (times - 1) * rows).all()
        assert (only["strong"].reads == times * rows).all()
        assert (only["gradient"].writes == rows).all()


def check_the_backward_pass_reads_what_counts() -> None:
    gradient, counts = torch.randn(9, 1500), torch.arange(9) % 2 == 0
    gradient[~counts] = torch.nan
    for dtype in TOLERANCE:
        grad = torch.rand(9, 2)[:, 0]
        with memory_guard.guard() as launches:
            out = triton_impl.scale(gradient, counts, grad, dtype)
        expected = torch.where(counts[:, None], gradient * grad[:, None], 0.0).to(dtype)
        assert torch.equal(out, expected)
        (only,) = launches
        assert (only["gradient"].reads == counts.numpy()[:, None]).all()
        assert (only["out"].writes == 1).all()
