"""`views`: every implementation against the reference, and the op as PyTorch sees it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.view_cases import (
    FULL,
    assert_mostly_close,
    assert_one_graph,
    both_parameters,
    image_batch,
)
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.views import (
    PRESETS,
    ViewParameters,
    ViewSpec,
    apply_views,
    view_parameters,
    view_preset,
    views,
)
from ptgm_fast.kernels.views.parameters import ranges

IMPLS = ["reference", "cpu"]


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> str:
    reason = dispatch.why_not("views", request.param, "cpu")
    if reason:
        pytest.skip(reason)
    return request.param


@settings(max_examples=40, deadline=None)
@given(
    num=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    source=st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.float16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["contiguous", "channels-last", "strided"]),
    preset=st.sampled_from(["none", "weak", "strong", "flip-shift"]),
)
def test_cpu_equals_the_reference(
    num: int,
    channels: int,
    height: int,
    width: int,
    source: torch.dtype,
    dtype: torch.dtype,
    layout: str,
    preset: str,
) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(num, channels, height, width, source)
    if layout == "channels-last":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=3)[..., ::2]
    weak, strong = both_parameters(num, channels, height, width, view_preset(preset))
    options = {"mean": 0.4, "std": 0.3, "dtype": dtype}
    actual = apply_views(images, weak, strong, impl="cpu", **options)  # type: ignore[arg-type]
    expected = apply_views(images, weak, strong, impl="reference", **options)  # type: ignore[arg-type]
    # Between neighboring pixels, a float32 coordinate error from rounding at this size counts up to 2 / std.
    atol = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert a.is_contiguous(memory_format=torch.channels_last)
        assert_mostly_close(a, e, atol=atol, share=0.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pointwise_steps_equal_the_reference(impl: str, channels: int) -> None:
    images = image_batch(32, channels, 32, 32)
    weak, strong = both_parameters(32, channels, 32, 32, FULL)
    actual = apply_views(images, weak, strong, impl=impl)
    expected = apply_views(images, weak, strong, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert_mostly_close(a, e, atol=1e-4, share=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_worse_than_twice_plain_pytorch(dtype: torch.dtype) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(16, 3, 48, 48)
    spec = ViewSpec(rotate=30, scale=(0.7, 1.4), shear=20, brightness=0.5, saturation=0.5, hue=0.2)
    weak, _ = both_parameters(16, 3, 48, 48, spec)
    exact = apply_views(images.double(), weak, dtype=torch.float64, impl="reference")[0]
    plain = apply_views(images, weak, dtype=dtype, impl="reference")[0]
    ours = apply_views(images, weak, dtype=dtype, impl="cpu")[0]
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", [*PRESETS, "full"])
def test_drawn_parameters_equal_the_reference(impl: str, channels: int, preset: str) -> None:
    spec = FULL if preset == "full" else view_preset(preset)
    size = {"channels": channels, "height": 28, "width": 45}
    actual = view_parameters(spec, 300, seed=9, start=11, impl=impl, **size).packed
    expected = view_parameters(spec, 300, seed=9, start=11, impl="reference", **size).packed
    # Discrete decisions (bits, cutout, which operations) must not differ at all.
    assert torch.equal(actual[:, [18, 20, 21, 22, 23]], expected[:, [18, 20, 21, 22, 23]])
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=2e-7)


def test_nan_is_not_hidden(impl: str) -> None:
    for channels in (1, 3):
        images = torch.full((1, channels, 5, 5), float("nan"))
        for spec in (ViewSpec(), FULL):
            weak, _ = views(images, dataclasses.replace(spec, cutout=0.0), seed=0, impl=impl)
            assert weak[0, :, 2, 2].isnan().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_senseless_geometry_stays_inside_the_image(bad: float) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(2, 3, 6, 7)
    for column in (*range(6), 20, 21, 22):
        parameters = ViewParameters.compose(2, 3)
        parameters.packed[:, column] = bad
        weak, _ = apply_views(images, parameters, impl="cpu")
        assert ((weak >= -1 - 1e-6) & (weak <= 1 + 1e-6)).all()


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_instruction_set(isa: str, channels: int) -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    from ptgm_fast import _C

    images = image_batch(8, channels, 23, 37)
    weak, strong = both_parameters(8, channels, 23, 37, FULL)
    before = _C.isa()
    try:
        _C.use_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for dtype, atol in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
            actual = apply_views(images, weak, strong, dtype=dtype, impl="cpu")
            expected = apply_views(images, weak, strong, dtype=dtype, impl="reference")
            for a, e in zip(actual, expected, strict=True):
                assert a is not None
                assert e is not None
                assert_mostly_close(a, e, atol=atol, share=2e-3)
    finally:
        _C.use_isa(before)


def test_thread_count_changes_nothing() -> None:
    if reason := dispatch.why_not("views", "cpu", "cpu"):
        pytest.skip(reason)
    images = image_batch(9, 3, 33, 21)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(views(images, FULL, FULL, seed=2, impl="cpu"))
    finally:
        torch.set_num_threads(before)
    for weak, strong in results[1:]:
        assert torch.equal(weak, results[0][0])
        assert torch.equal(strong, results[0][1])


# torch.library -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(two: bool, requires_grad: bool) -> None:
    images = image_batch(2, 3, 6, 5).requires_grad_(requires_grad)
    weak, strong = both_parameters(2, 3, 6, 5, FULL)
    arguments = (
        images,
        weak.packed,
        strong.packed if two else None,
        [0.5] * 3,
        [0.5] * 3,
        torch.float32,
        (6, 5),
        "",
    )
    torch.library.opcheck(torch.ops.ptgm_fast.views.default, arguments)
    numbers = torch.rand(4, 24)
    spec_ranges = ranges(FULL, 3)
    torch.library.opcheck(
        torch.ops.ptgm_fast.view_parameters.default, (numbers, spec_ranges, 3, 6, 5, "")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_gradcheck(channels: int) -> None:
    # Values well inside (0, 1) and no posterize: the gradient of a clipped or rounded value is zero, not a limit.
    images = (image_batch(2, channels, 4, 5).double() * 0.5).requires_grad_()
    spec = ViewSpec(
        rotate=30, scale=(0.8, 1.2), brightness=0.2, saturation=0.2, hue=0.1, cutout=0.3
    )
    weak, strong = both_parameters(2, channels, 4, 5, spec)

    def both(x: Tensor) -> tuple[Tensor, Tensor | None]:
        return apply_views(x, weak, strong, dtype=torch.float64)

    assert torch.autograd.gradcheck(both, (images,))


def test_the_gradient_of_the_fast_path_is_the_reference_s(impl: str) -> None:
    images = image_batch(3, 3, 9, 8)
    grads = []
    for name in (impl, "reference"):
        leaf = images.clone().requires_grad_()
        weak, strong = views(leaf, FULL, view_preset("strong"), seed=1, impl=name)
        assert strong is not None
        (weak.square().sum() + strong.sum()).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-3)


def test_one_graph() -> None:
    def step(x: Tensor) -> Tensor:
        weak, strong = views(x.tanh(), view_preset("weak"), view_preset("strong"), seed=4, start=6)
        assert strong is not None
        return (weak * strong).sum(dim=(1, 2, 3))

    images = image_batch(3, 3, 8, 6).contiguous(memory_format=torch.channels_last)
    assert_one_graph(step, images)


def test_the_gradient_has_the_images_layout() -> None:
    images = image_batch(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    weak, strong = both_parameters(2, 3, 6, 5, FULL)
    ones, statistics = torch.ones_like(images), [0.5] * 3
    grad = torch.ops.ptgm_fast.views_backward(
        ones,
        ones,
        images,
        weak.packed,
        strong.packed,
        statistics,
        statistics,
        torch.float32,
        (6, 5),
    )
    assert grad.is_contiguous(memory_format=torch.channels_last)
