"""`cond_norm_act` against eager PyTorch, torch.compile and the time it takes to move its bytes. float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from registry import Case, Work
from torch import Tensor

from ptgm_fast.kernels.cond_norm_act import cond_norm_act, phase_weight, reference

NUM, CHANNELS, SIDE = 32, 128, 32


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def norm_act_upsample(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The operation as written in a generator's block."""
    values = F.relu(x * scale[:, :, None, None] + shift[:, :, None, None])
    return F.interpolate(values, scale_factor=2)


def mover(x: Tensor, written: int) -> Callable[[], Any]:
    """Read x and write `written` bytes with torch's copy, into memory that is already allocated."""
    out = torch.empty(written // x.element_size(), dtype=x.dtype, device=x.device)
    flat = x.permute(0, 2, 3, 1).reshape(-1)
    if out.numel() < flat.numel():
        return lambda: (out.copy_(flat[: out.numel()]), flat[out.numel() :].sum())
    return lambda: out.view(-1, flat.numel()).copy_(flat.expand(out.numel() // flat.numel(), -1))


def upsample(device: torch.device) -> Work:
    """relu(x * scale + shift), then nearest 2x: 32x128x32x32 to 32x128x64x64."""
    torch.manual_seed(0)
    x = channels_last(NUM, CHANNELS, SIDE, SIDE).to(device)
    scale, shift = torch.randn(2, NUM, CHANNELS).to(device)
    planes = x.contiguous()
    compiled = torch.compile(norm_act_upsample)

    def check(contender: str, found: Tensor) -> None:
        torch.testing.assert_close(found, norm_act_upsample(x, scale, shift), atol=1e-6, rtol=1e-5)

    calls = {
        "fused": lambda: cond_norm_act(x, scale, shift, upsample=True),
        "bytes": mover(x, 4 * x.numel() * x.element_size()),
        "compile": lambda: compiled(x, scale, shift),
        "eager": lambda: norm_act_upsample(x, scale, shift),
        "eager NCHW": lambda: norm_act_upsample(planes, scale, shift),
    }
    return Work(calls, check)


def phases(device: torch.device) -> Work:
    """The interleave of a phase convolution's output with scale, shift and relu, to 32x128x64x64."""
    torch.manual_seed(0)
    x = channels_last(NUM, 4 * CHANNELS, SIDE + 1, SIDE + 1).to(device)
    scale, shift = torch.randn(2, NUM, CHANNELS).to(device)

    def eager() -> Tensor:
        return reference.cond_norm_act(x, scale, shift, None, "relu", False, True)

    def check(contender: str, found: Tensor) -> None:
        torch.testing.assert_close(found, eager(), atol=1e-6, rtol=1e-5)

    written = NUM * CHANNELS * (2 * SIDE) ** 2 * x.element_size()
    calls = {
        "fused": lambda: cond_norm_act(x, scale, shift, phases=True),
        "bytes": mover(x, written),
        "eager": eager,
    }
    return Work(calls, check)


def block(device: torch.device) -> Work:
    """Norm, relu, upsample, 3x3 convolution, norm, relu: what the phase convolution saves in a generator's block."""
    torch.manual_seed(0)
    x = channels_last(8, CHANNELS, SIDE, SIDE).to(device)
    scale, shift = torch.randn(2, 8, CHANNELS).to(device)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).mul_(0.03).to(device)
    weight = weight.contiguous(memory_format=torch.channels_last)
    phase = phase_weight(weight).contiguous(memory_format=torch.channels_last)

    def eager() -> Tensor:
        values = F.conv2d(norm_act_upsample(x, scale, shift), weight, padding=1)
        return F.relu(values * scale[:, :, None, None] + shift[:, :, None, None])

    def upsampling() -> Tensor:
        values = F.conv2d(cond_norm_act(x, scale, shift, upsample=True), weight, padding=1)
        return cond_norm_act(values, scale, shift)

    def as_phases() -> Tensor:
        values = F.conv2d(cond_norm_act(x, scale, shift), phase, padding=1)
        return cond_norm_act(values, scale, shift, phases=True)

    def check(contender: str, found: Tensor) -> None:
        torch.testing.assert_close(found, eager(), atol=1e-3, rtol=1e-3)

    return Work({"fused phases": as_phases, "fused upsample": upsampling, "eager": eager}, check)


CASES = [
    Case(
        f"upsample {NUM}x{CHANNELS}x{SIDE}x{SIDE}",
        "kernels",
        ("fused", "bytes", "compile", "eager", "eager NCHW"),
        upsample,
        calls=40,
        warmup=5,
        on_gpu=("fused", "bytes", "compile", "eager", "eager NCHW"),
    ),
    Case(
        f"phases {NUM}x{4 * CHANNELS}x{SIDE + 1}x{SIDE + 1}",
        "kernels",
        ("fused", "bytes", "eager"),
        phases,
        calls=40,
        warmup=5,
        on_gpu=("fused", "bytes", "eager"),
    ),
    Case(
        f"block 8x{CHANNELS}x{SIDE}x{SIDE}",
        "kernels",
        ("fused phases", "fused upsample", "eager"),
        block,
        calls=15,
        warmup=2,
        on_gpu=("fused phases", "fused upsample", "eager"),
    ),
]
