"""`pseudo_label` on Triton's interpreter: numerics against the reference, and its memory accesses."""

from __future__ import annotations

import torch

from helpers import memory_guard
from ptgm_fast.kernels.pseudo_label import _pseudo_label, pseudo_label, triton_impl

# One block of classes, and several.
SHAPES = ((130, 2), (11, 60), (1, 1), (3, 17), (2, triton_impl.MAX_BLOCK + 700), (0, 5))


def check_shapes_and_dtypes() -> None:
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            torch.manual_seed(sum(shape))
            values = (torch.randn(shape) * 3).to(dtype)
            ours, theirs = (
                pseudo_label(values, temperature=0.7, threshold=0.4, impl=impl)
                for impl in ("triton", "reference")
            )
            assert torch.equal(ours.labels, theirs.labels)
            torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-5, atol=0)
            assert torch.equal(ours.mask, ours.confidence >= 0.4)


def check_ties_go_to_the_first_class_of_any_block() -> None:
    block = triton_impl.MAX_BLOCK
    values = torch.zeros(4, 2 * block + 3)
    values[1, [5, block + 5]] = 9.0
    values[2, [block, 2 * block + 2]] = 9.0
    values[3, -1] = 9.0
    labels = pseudo_label(values, impl="triton").labels
    assert labels.tolist() == [0, 5, block, 2 * block + 2]


def check_extreme_logits() -> None:
    for classes in (60, triton_impl.MAX_BLOCK + 60):
        values = torch.full((7, classes), -1e4)
        values[0, -1] = 1e4
        values[1, :-1] = -torch.inf
        values[2, -1], values[3, 1], values[4] = torch.nan, torch.inf, -torch.inf
        values[5], values[6] = torch.nan, 0.0
        values[6, 3] = 9e3
        labels, confidence, mask = pseudo_label(values, threshold=0.5, impl="triton")
        assert labels[[0, 1, 6]].tolist() == [classes - 1, classes - 1, 3]
        assert (confidence[[0, 1, 6]] == 1).all()
        assert confidence[2:6].isnan().all()
        assert mask.tolist() == [True, True, False, False, False, False, True]
        assert ((labels >= 0) & (labels < classes)).all()


def check_strides_and_the_op() -> None:
    wide = torch.randn(6, 130)
    for values in (wide[:, 1:41], wide.t().contiguous().t(), wide[::2]):
        ours, theirs = (pseudo_label(values, impl=impl) for impl in ("triton", "reference"))
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-5, atol=0)
    torch.library.opcheck(_pseudo_label.op, (wide, 0.7, 0.5, "triton"))


def check_each_logit_is_read_once() -> None:
    for shape in SHAPES[:-1]:
        with memory_guard.guard() as launches:
            triton_impl.pseudo_label(torch.randn(shape), 1.0, 0.5)
        (only,) = launches
        assert (only["logits"].reads == 1).all()
        for name in ("labels", "confidence", "mask"):
            assert (only[name].reads == 0).all()
            assert (only[name].writes == 1).all()
