"""The reference definition of cond_norm_act in plain PyTorch, and the weight of a phase convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAKY_SLOPE = 0.2
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "tanh")


def cond_norm_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    upsample: bool,
    phases: bool,
) -> Tensor:
    """Return act(U(x * scale + shift) + residual), channels-last, in x's dtype; computes in float32 or float64."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = interleave_phases(x) if phases else x
    scale, shift = (s.to(compute).view(-1, s.shape[-1], 1, 1) for s in (scale, shift))
    values = values.to(compute) * scale + shift
    if upsample:
        values = repeat_pixels(values)
    if residual is not None:
        fits = residual.shape[2:] == values.shape[2:]
        values = values + (residual if fits else repeat_pixels(residual)).to(compute)
    return activate(values, activation).to(x.dtype).contiguous(memory_format=torch.channels_last)


def output_shape(x: Tensor, upsample: bool, phases: bool) -> tuple[int, int, int, int]:
    """Return the shape [N, C, H, W] of y."""
    num, channels, height, width = x.shape
    if phases:
        return num, channels // 4, 2 * height - 2, 2 * width - 2
    return (num, channels, 2 * height, 2 * width) if upsample else (num, channels, height, width)


def activate(values: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return values
    if activation == "relu":
        return values.relu()
    if activation == "leaky_relu":
        return F.leaky_relu(values, LEAKY_SLOPE)
    return F.silu(values) if activation == "silu" else values.tanh()


def repeat_pixels(x: Tensor) -> Tensor:
    """Nearest 2x upsampling: [N, C, H, W] -> [N, C, 2H, 2W]."""
    num, channels, height, width = x.shape
    repeated = x[:, :, :, None, :, None].expand(num, channels, height, 2, width, 2)
    return repeated.reshape(num, channels, 2 * height, 2 * width)


def interleave_phases(o: Tensor) -> Tensor:
    """[N, 4C, H+1, W+1] -> [N, C, 2H, 2W] with y[2i+a, 2j+b] = o[group 2a+b][i+a, j+b]."""
    num, channels, height, width = o.shape[0], o.shape[1] // 4, o.shape[2] - 1, o.shape[3] - 1
    groups = o.unflatten(1, (2, 2, channels))
    rows = [
        torch.stack([groups[:, a, b, :, a : a + height, b : b + width] for b in (0, 1)], dim=-1)
        for a in (0, 1)
    ]
    y = torch.stack(rows, dim=3)
    return y.reshape(num, channels, 2 * height, 2 * width)


def phase_weight(weight: Tensor) -> Tensor:
    """Return the 2x2 weight of a phase convolution: [O, I, 3, 3] -> [4O, I, 2, 2].

    For an output pixel of row parity a and column parity b, nearest 2x upsampling followed by a 3x3 convolution (padding 1)
    reads only a 2x2 block of the small image. It therefore equals a single 2x2 convolution (padding 1) of the small image
    with this weight. Channel group 2a + b of its output o holds the outputs of parity (a, b), shifted by (a, b):
    ``y[2i+a, 2j+b] = o[group 2a+b][i+a, j+b]`` (`cond_norm_act` with ``phases=True`` puts them in place). Parity 0 sums the
    weight's rows {0} and {1, 2}, parity 1 its rows {0, 1} and {2}; columns likewise. A bias is that of the 3x3
    convolution, repeated four times or folded into the shift. Differentiable. Raises ValueError unless weight is
    [O, I, 3, 3].
    """
    if weight.ndim != 4 or tuple(weight.shape[2:]) != (3, 3):
        raise ValueError(f"weight must be [O, I, 3, 3], got {tuple(weight.shape)}")

    def taps(w: Tensor, dim: int, parity: int) -> Tensor:
        first, second, third = w.unbind(dim)
        pair = (first, second + third) if parity == 0 else (first + second, third)
        return torch.stack(pair, dim)

    return torch.cat([taps(taps(weight, 2, a), 3, b) for a in (0, 1) for b in (0, 1)])
