"""`cond_norm_act` against eager PyTorch, torch.compile and the time of moving its bytes.

pytest benchmarks/kernels/test_cond_norm_act.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.kernels.cond_norm_act import cond_norm_act, phase_weight, reference

pytestmark = pytest.mark.usefixtures("kept_memory")

NUM, CHANNELS, SIDE = 32, 128, 32
CONTENDERS = ("fused", "bytes", "compile", "eager", "eager NCHW")


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def norm_act_upsample(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """As a generator's block writes it."""
    values = F.relu(x * scale[:, :, None, None] + shift[:, :, None, None])
    return F.interpolate(values, scale_factor=2)


def mover(x: Tensor, written: int) -> Callable[[], Any]:
    """Read x and write so many bytes: torch's copy, into memory that is there already."""
    out = torch.empty(written // x.element_size(), dtype=x.dtype)
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    if out.numel() < flat.numel():
        return lambda: (out.copy_(flat[: out.numel()]), flat[out.numel() :].sum())
    return lambda: out.view(-1, flat.numel()).copy_(flat.expand(out.numel() // flat.numel(), -1))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_upsample(benchmark: Any, threads: int, contender: str) -> None:
    """relu(x * scale + shift), then nearest 2x: 32x128x32x32 to 32x128x64x64, float32."""
    benchmark.group = f"upsample {NUM}x{CHANNELS}x{SIDE}x{SIDE}, {threads} threads"
    x = channels_last(NUM, CHANNELS, SIDE, SIDE)
    scale, shift = torch.randn(2, NUM, CHANNELS)
    expected = norm_act_upsample(x, scale, shift)
    fused = cond_norm_act(x, scale, shift, upsample=True)
    torch.testing.assert_close(fused, expected, atol=1e-6, rtol=1e-5)
    planes = x.contiguous()
    functions: dict[str, Callable[[], Any]] = {
        "fused": lambda: cond_norm_act(x, scale, shift, upsample=True),
        "bytes": mover(x, expected.numel() * 4),
        "eager": lambda: norm_act_upsample(x, scale, shift),
        "eager NCHW": lambda: norm_act_upsample(planes, scale, shift),
    }
    if contender == "compile":
        compiled = torch.compile(norm_act_upsample)
        torch.testing.assert_close(compiled(x, scale, shift), expected, atol=1e-6, rtol=1e-5)
        functions["compile"] = lambda: compiled(x, scale, shift)
    del expected, fused
    benchmark.pedantic(functions[contender], rounds=40, warmup_rounds=5)


@pytest.mark.parametrize("contender", ["fused", "bytes", "eager"])
def test_phases(benchmark: Any, threads: int, contender: str) -> None:
    """The interleave of a phase convolution's output with scale, shift and relu, to 32x128x64x64, float32."""
    benchmark.group = f"phases {NUM}x{4 * CHANNELS}x{SIDE + 1}x{SIDE + 1}, {threads} threads"
    x = channels_last(NUM, 4 * CHANNELS, SIDE + 1, SIDE + 1)
    scale, shift = torch.randn(2, NUM, CHANNELS)

    def eager() -> Tensor:
        return reference.cond_norm_act(x, scale, shift, None, "relu", False, True)

    expected = eager()
    fused = cond_norm_act(x, scale, shift, phases=True)
    torch.testing.assert_close(fused, expected, atol=1e-6, rtol=1e-5)
    functions: dict[str, Callable[[], Any]] = {
        "fused": lambda: cond_norm_act(x, scale, shift, phases=True),
        "bytes": mover(x, expected.numel() * 4),
        "eager": eager,
    }
    del expected, fused
    benchmark.pedantic(functions[contender], rounds=40, warmup_rounds=5)


@pytest.mark.parametrize("contender", ["fused phases", "fused upsample", "eager"])
def test_block(benchmark: Any, threads: int, contender: str) -> None:
    """Norm, relu, upsample, 3x3 convolution, norm, relu: what the phase convolution saves in a generator's block."""
    benchmark.group = f"block 8x{CHANNELS}x{SIDE}x{SIDE}, {threads} threads"
    x = channels_last(8, CHANNELS, SIDE, SIDE)
    scale, shift = torch.randn(2, 8, CHANNELS)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).mul_(0.03)
    weight = weight.contiguous(memory_format=torch.channels_last)
    phase = phase_weight(weight).contiguous(memory_format=torch.channels_last)

    def eager() -> Tensor:
        values = F.conv2d(norm_act_upsample(x, scale, shift), weight, padding=1)
        return F.relu(values * scale[:, :, None, None] + shift[:, :, None, None])

    def upsampling() -> Tensor:
        values = F.conv2d(cond_norm_act(x, scale, shift, upsample=True), weight, padding=1)
        return cond_norm_act(values, scale, shift)

    def phases() -> Tensor:
        values = F.conv2d(cond_norm_act(x, scale, shift), phase, padding=1)
        return cond_norm_act(values, scale, shift, phases=True)

    functions = {"fused phases": phases, "fused upsample": upsampling, "eager": eager}
    torch.testing.assert_close(functions[contender](), eager(), atol=1e-3, rtol=1e-3)
    benchmark.pedantic(functions[contender], rounds=15, warmup_rounds=2)
