"""`cond_norm_act` on Triton's interpreter: numerics against the reference, and its memory accesses."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from helpers import memory_guard
from ptgm_fast.kernels.cond_norm_act import ACTIVATIONS, cond_norm_act

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
MODES = ("plain", "upsample", "phases")


def tensors(
    mode: str, residual: str, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x, scale, shift and a residual (none, full or half of the output) for y of `shape`."""
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
    return image(sizes[mode]), torch.randn(num, channels), torch.randn(num, channels), added


def run(
    mode: str,
    impl: str,
    arguments: tuple[Tensor, Tensor, Tensor, Tensor | None],
    activation: str = "relu",
) -> Tensor:
    x, scale, shift, residual = arguments
    options = {"upsample": mode == "upsample", "phases": mode == "phases"}
    return cond_norm_act(
        x, scale, shift, residual=residual, activation=activation, impl=impl, **options
    )  # type: ignore[arg-type]


def check_modes_residuals_and_dtypes() -> None:
    for mode, residual in itertools.product(MODES, ("none", "full", "half")):
        for shape, dtype in (
            ((2, 16, 6, 4), torch.float32),
            ((1, 5, 2, 8), torch.bfloat16),
            ((1, 130, 2, 2), torch.float16),
            ((0, 4, 2, 2), torch.float32),
        ):
            arguments = tensors(mode, residual, shape, dtype)
            actual, expected = (run(mode, impl, arguments) for impl in ("triton", "reference"))
            assert actual.is_contiguous(memory_format=torch.channels_last)
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def check_activations() -> None:
    for activation in ACTIVATIONS:
        arguments = tensors("plain", "none", (1, 8, 16, 16), torch.float32)
        actual, expected = (
            run("plain", impl, arguments, activation) for impl in ("triton", "reference")
        )
        torch.testing.assert_close(actual, expected, atol=3e-7, rtol=2e-6)


def check_tanh_is_exact_near_zero() -> None:
    x = torch.logspace(-8, 1, 200).reshape(1, 1, 1, 200)
    one, zero = torch.ones(1), torch.zeros(1)
    actual = cond_norm_act(x, one, zero, activation="tanh", impl="triton")
    torch.testing.assert_close(actual, x.double().tanh().float(), atol=0, rtol=1e-6)


def check_nan_is_not_hidden() -> None:
    x = torch.full((1, 4, 2, 2), float("nan"))
    for activation in ACTIVATIONS:
        assert (
            cond_norm_act(x, torch.ones(4), torch.ones(4), activation=activation, impl="triton")
            .isnan()
            .all()
        )


def check_strided_channels_are_read_in_place() -> None:
    wide = torch.randn(2, 24, 4, 4).contiguous(memory_format=torch.channels_last)
    arguments = (wide[:, :8], torch.randn(8), torch.randn(8), wide[:, 8:16])
    with memory_guard.guard() as launches:
        actual = run("plain", "triton", arguments)
    torch.testing.assert_close(actual, run("plain", "reference", arguments), atol=1e-6, rtol=1e-6)
    assert (launches[0]["x"].reads == 1).all()
    assert (launches[0]["residual"].reads == 1).all()


def check_every_value_is_read_once_and_written_once() -> None:
    for mode, residual in itertools.product(MODES, ("none", "full", "half")):
        arguments = tensors(mode, residual, (2, 12, 6, 4), torch.float32)
        with memory_guard.guard() as launches:
            run(mode, "triton", arguments)
        (launch,) = launches
        assert (launch["out"].writes == 1).all()
        assert (launch["out"].reads == 0).all()
        reads = launch["x"].reads
        if mode == "phases":
            # Borders of the groups that no output needs are not read.
            groups = reads.reshape(2, 2, 2, 12, 4, 3)
            for a, b in itertools.product((0, 1), (0, 1)):
                used = groups[:, a, b, :, a : a + 3, b : b + 2]
                assert (used == 1).all()
            assert reads.sum() == launch["out"].writes.size
        else:
            assert (reads == 1).all()
        if residual != "none":
            # A half-size residual is read once if x has the same size, else once for each of the four pixels.
            times = 4 if residual == "half" and mode != "upsample" else 1
            assert (launch["residual"].reads == times).all()
