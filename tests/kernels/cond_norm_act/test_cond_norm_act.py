"""`cond_norm_act` and `phase_weight`: the definition, and every implementation against the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import isolated
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.cond_norm_act import ACTIVATIONS, cond_norm_act, phase_weight

INTERPRETED = isolated.checks("cond_norm_act/interpreted.py", interpret=True)
COMPILED = isolated.checks("cond_norm_act/compiled.py", interpret=False)
MODES = ("plain", "upsample", "phases")
RESIDUALS = ("none", "full", "half")
Arguments = tuple[Tensor, Tensor, Tensor, Tensor | None]


@pytest.fixture(params=["reference", "cpu"])
def impl(request: pytest.FixtureRequest) -> str:
    if reason := dispatch.why_not("cond_norm_act", request.param, "cpu"):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def extension():  # type: ignore[no-untyped-def]
    if reason := dispatch.why_not("cond_norm_act", "cpu", "cpu"):
        pytest.skip(reason)
    from ptgm_fast import _C

    return _C


def arguments_for(
    mode: str, residual: str, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32
) -> Arguments:
    """x, scale, shift and a residual (none, full or half of the output) for y of `shape`, which has even sides."""
    torch.manual_seed(sum(shape))
    num, channels, height, width = shape
    sizes = {
        "plain": shape,
        "upsample": (num, channels, height // 2, width // 2),
        "phases": (num, 4 * channels, height // 2 + 1, width // 2 + 1),
    }
    residuals = {"full": shape, "half": (num, channels, height // 2, width // 2)}

    def image(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size).to(dtype).contiguous(memory_format=torch.channels_last)

    added = image(residuals[residual]) if residual in residuals else None
    affine = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = torch.randn(2, num, channels, dtype=affine)
    return image(sizes[mode]), scale, shift, added


def run(mode: str, impl: str | None, arguments: Arguments, activation: str = "relu") -> Tensor:
    x, scale, shift, residual = arguments
    return cond_norm_act(
        x,
        scale,
        shift,
        activation=activation,
        upsample=mode == "upsample",
        phases=mode == "phases",
        residual=residual,
        impl=impl,
    )


# Use cases -----------------------------------------------------------------------------------------------------------


def test_equals_a_conditional_batch_norm(impl: str) -> None:
    torch.manual_seed(0)
    x, gain, bias = torch.randn(3, 6, 4, 5), torch.randn(3, 6), torch.randn(3, 6)
    norm = nn.BatchNorm2d(6, affine=False).eval()
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    expected = F.interpolate(
        F.relu(gain[:, :, None, None] * norm(x) + bias[:, :, None, None]), scale_factor=2
    )
    scale = gain / torch.sqrt(norm.running_var + norm.eps)
    shift = bias - norm.running_mean * scale
    actual = cond_norm_act(x, scale, shift, upsample=True, impl=impl)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (5, 7), (8, 8)])
def test_phase_convolution_equals_upsample_and_convolution(
    impl: str, height: int, width: int
) -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(2, 8, height, width), torch.randn(6, 8, 3, 3), torch.randn(6)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, bias, padding=1)
    phases = F.conv2d(x, phase_weight(weight), padding=1)
    assert phases.shape == (2, 24, height + 1, width + 1)
    actual = cond_norm_act(phases, torch.ones(6), bias, activation="none", phases=True, impl=impl)
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("none", lambda v: v),
        ("relu", F.relu),
        ("leaky_relu", lambda v: F.leaky_relu(v, 0.2)),
        ("silu", F.silu),
        ("tanh", torch.tanh),
    ],
)
def test_activations_are_torch_s(impl: str, activation: str, function) -> None:  # type: ignore[no-untyped-def]
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -0.0, 1e30, -1e30])])
    x = torch.cat([x, torch.logspace(-20, 0, 95)]).reshape(1, 4, 25, 41)
    actual = cond_norm_act(x, torch.ones(4), torch.zeros(4), activation=activation, impl=impl)
    torch.testing.assert_close(actual, function(x.double()).float(), atol=1e-35, rtol=1e-6)


def test_activations_cover_the_names() -> None:
    assert set(ACTIVATIONS) == {"none", "relu", "leaky_relu", "silu", "tanh"}


def test_the_residual_comes_before_the_activation(impl: str) -> None:
    x, residual = torch.ones(1, 1, 2, 2), torch.full((1, 1, 1, 1), -3.0)
    one = torch.ones(1)
    assert (cond_norm_act(x, one, one, residual=residual, impl=impl) == 0).all()
    none = cond_norm_act(x, one, one, residual=residual, activation="none", impl=impl)
    assert (none == -1).all()


def test_nan_is_not_hidden(impl: str) -> None:
    x = torch.full((1, 20, 2, 2), float("nan"))
    for activation in ACTIVATIONS:
        y = cond_norm_act(x, torch.ones(20), torch.ones(20), activation=activation, impl=impl)
        assert y.isnan().all()


# Implementations against the reference -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(0, 3),
    channels=st.one_of(st.integers(1, 40), st.sampled_from([128, 511, 513, 1030])),
    height=st.integers(1, 5),
    width=st.integers(1, 9),
    mode=st.sampled_from(MODES),
    residual=st.sampled_from(RESIDUALS),
    activation=st.sampled_from(ACTIVATIONS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_cpu_equals_the_reference(
    num: int,
    channels: int,
    height: int,
    width: int,
    mode: str,
    residual: str,
    activation: str,
    dtype: torch.dtype,
) -> None:
    if reason := dispatch.why_not("cond_norm_act", "cpu", "cpu"):
        pytest.skip(reason)
    arguments = arguments_for(mode, residual, (num, channels, 2 * height, 2 * width), dtype)
    actual, expected = (run(mode, impl, arguments, activation) for impl in ("cpu", "reference"))
    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float32: 4e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_instruction_set(extension, isa: str, activation: str) -> None:  # type: ignore[no-untyped-def]
    before = extension.isa()
    try:
        extension.use_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for mode, residual in itertools.product(MODES, RESIDUALS):
            arguments = arguments_for(mode, residual, (2, 37, 4, 6))
            actual, expected = (
                run(mode, impl, arguments, activation) for impl in ("cpu", "reference")
            )
            torch.testing.assert_close(actual, expected, atol=4e-6, rtol=4e-6)
    finally:
        extension.use_isa(before)


@pytest.mark.parametrize("mode", MODES)
def test_large_outputs_are_streamed_alike(extension, mode: str) -> None:  # type: ignore[no-untyped-def]
    # From 16 MiB on, stores bypass the caches; the values equal those computed sample by sample, where they do not.
    x, scale, shift, residual = arguments_for(mode, "half", (9, 128, 64, 64))
    whole = run(mode, "cpu", (x, scale, shift, residual))
    assert whole.numel() * 4 >= 16 << 20
    assert residual is not None
    for n in range(len(x)):
        one = slice(n, n + 1)
        assert torch.equal(
            run(mode, "cpu", (x[one], scale[one], shift[one], residual[one])), whole[one]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh"])
def test_no_worse_than_twice_plain_pytorch(impl: str, dtype: torch.dtype, activation: str) -> None:
    x, scale, shift, residual = arguments_for("plain", "full", (2, 64, 16, 16), dtype)
    assert residual is not None
    exact = run(
        "plain", "reference", tuple(t.double() for t in (x, scale, shift, residual)), activation
    )  # type: ignore[arg-type]
    functions = {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh}
    plain = functions[activation](
        (x * scale[:, :, None, None].to(dtype) + shift[:, :, None, None].to(dtype)) + residual
    )
    ours = run("plain", impl, (x, scale, shift, residual), activation)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("layout", ["contiguous", "channel slice", "column slice", "flipped order"])
def test_strides(impl: str, layout: str) -> None:
    torch.manual_seed(2)
    wide = torch.randn(2, 24, 6, 8).contiguous(memory_format=torch.channels_last)
    x = {
        "contiguous": wide.contiguous(),
        "channel slice": wide[:, 8:20],
        "column slice": wide[:, :, 1::2, ::3],
        "flipped order": wide.transpose(2, 3),
    }[layout]
    scale, shift = torch.randn(2, x.shape[1])
    residual = x * 2
    actual = cond_norm_act(x, scale, shift, residual=residual, impl=impl)
    expected = F.relu(x * scale[:, None, None] + shift[:, None, None] + residual)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_shared_and_per_sample_scales_mix(impl: str) -> None:
    x, scale, shift = torch.randn(3, 4, 2, 2), torch.randn(3, 4), torch.randn(4)
    expected = F.relu(x * scale[:, :, None, None] + shift[:, None, None])
    torch.testing.assert_close(cond_norm_act(x, scale, shift, impl=impl), expected)


def test_thread_count_changes_nothing(extension) -> None:  # type: ignore[no-untyped-def]
    arguments = arguments_for("phases", "half", (3, 65, 18, 22))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run("phases", "cpu", arguments, "silu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Errors --------------------------------------------------------------------------------------------------------------


def test_bad_calls_are_named() -> None:
    x, one = torch.zeros(2, 8, 4, 4), torch.ones(8)
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        cond_norm_act(x, one, one, activation="swish")
    with pytest.raises(ValueError, match=r"scale must be .* \[2, 8\] or .* \[8\], got \(7,\)"):
        cond_norm_act(x, torch.ones(7), one)
    with pytest.raises(ValueError, match="shift must be"):
        cond_norm_act(x, one, torch.ones(3, 8))
    with pytest.raises(ValueError, match="leave upsample off"):
        cond_norm_act(x, one, one, upsample=True, phases=True)
    with pytest.raises(ValueError, match="the output of a phase convolution"):
        cond_norm_act(torch.zeros(2, 6, 4, 4), one, one, phases=True)
    with pytest.raises(ValueError, match="residual must have y's shape"):
        cond_norm_act(x, one, one, residual=torch.zeros(2, 8, 3, 3))
    with pytest.raises(ValueError, match="floating-point"):
        cond_norm_act(x.long(), one, one)
    with pytest.raises(ValueError, match=r"must be \[O, I, 3, 3\]"):
        phase_weight(torch.zeros(4, 4, 5, 5))
    with pytest.raises(dispatch.ImplementationError, match="float32"):
        cond_norm_act(x.double(), one, one, impl="cpu")


# torch.library -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_opcheck(mode: str, residual: str) -> None:
    x, scale, shift, added = arguments_for(mode, residual, (2, 3, 4, 6))
    for tensor in (x, scale, shift, added):
        if tensor is not None:
            tensor.requires_grad_()
    options = ("silu", mode == "upsample", mode == "phases", "")
    torch.library.opcheck(
        torch.ops.ptgm_fast.cond_norm_act.default, (x, scale, shift, added, *options)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("activation", ["silu", "tanh", "leaky_relu"])
def test_gradcheck(mode: str, residual: str, activation: str) -> None:
    given_ = arguments_for(mode, residual, (2, 2, 2, 4), torch.float64)
    leaves = [t.requires_grad_() for t in given_ if t is not None]

    def call(*tensors: Tensor) -> Tensor:
        padded = (*tensors, None) if len(tensors) == 3 else tensors
        return run(mode, None, padded, activation)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(call, leaves)


def test_phase_weight_is_differentiable() -> None:
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(phase_weight, weight)


def test_one_graph() -> None:
    x, scale, shift, residual = arguments_for("upsample", "half", (2, 8, 8, 8))
    weight = torch.randn(8, 8, 3, 3, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        return run("upsample", None, (F.conv2d(x, weight, padding=1), scale, shift, residual)).sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    results, grads = [], []
    for function in (step, compiled):
        weight.grad = None
        result = function(x)
        result.backward()
        results.append(result)
        grads.append(weight.grad)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(grads[0], grads[1])


# Triton, without and with a GPU --------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(mode: str, dtype: torch.dtype) -> None:
    for residual, activation in itertools.product(RESIDUALS, ACTIVATIONS):
        on_cpu = arguments_for(mode, residual, (3, 96, 16, 20), dtype)
        on_gpu = tuple(None if t is None else t.cuda() for t in on_cpu)
        actual = run(mode, "triton", on_gpu, activation).cpu()  # type: ignore[arg-type]
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
        torch.testing.assert_close(
            actual, run(mode, "reference", on_cpu, activation), atol=tolerance, rtol=tolerance
        )
