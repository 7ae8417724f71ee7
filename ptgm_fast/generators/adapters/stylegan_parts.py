"""What StyleGAN2 and StyleGAN3 share: equalized linear layers, the mapping network, resampling with filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ptgm_fast.generators.files import PublishedConfig


class StyleGANConfig(PublishedConfig):
    """The arguments that both versions take. c_dim 0 is an unconditional network, which has no labels to mix."""

    z_dim: int = Field(ge=1)
    c_dim: int = Field(ge=1)
    w_dim: int = Field(ge=1)
    img_resolution: int
    img_channels: Literal[1, 3]


# Gain that keeps unit variance after each activation; the slope of lrelu is 0.2.
GAINS = {"linear": 1.0, "relu": math.sqrt(2), "lrelu": math.sqrt(2)}


def activate(x: Tensor, activation: str, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """gain * GAINS[activation] * activation(x), then clipped to +-clamp * gain if there is a clamp."""
    limit = 0.0 if clamp is None else clamp * gain
    if activation == "lrelu":
        x = F.leaky_relu(x, 0.2)
    elif activation == "relu":
        x = F.relu(x)
    gain *= GAINS[activation]
    x = x * gain if gain != 1 else x
    return x if clamp is None else x.clamp(-limit, limit)


def unit_moment(x: Tensor) -> Tensor:
    """x / sqrt(mean of x^2 over a row)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class EqualizedLinear(nn.Module):
    """y = act((s / sqrt(D) W) x + s b), x [N, D]; s is the layer's learning rate relative to the network's.

    Weights are stored with unit variance (Karras et al. 2018, arXiv:1710.10196, section 4.1).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gain, self.bias_gain = lr_multiplier / math.sqrt(inputs), lr_multiplier
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.bias_gain
        return activate(F.linear(x, self.weight * self.gain, bias), self.activation)


class Mapping(nn.Module):
    """(z, y) -> styles w [N, num_ws, w_dim], moved towards their mean for a truncation below 1.

    w = f([z / |z|, e / |e|]), e = A y the embedding of a one-hot or soft label y [N, K], |.| the root mean square
    (Karras et al. 2020, arXiv:2006.06676). The first `cutoff` styles (None: all) become w_avg + t (w - w_avg)
    (Karras et al. 2019, arXiv:1812.04948, appendix B).
    """

    w_avg: Tensor

    def __init__(
        self,
        config: StyleGANConfig,
        *,
        num_ws: int,
        num_layers: int,
        lr_multiplier: float,
        cutoff: int | None,
        hidden_dim: int | None = None,
        embed_dim: int | None = None,
        activation: str = "lrelu",
    ) -> None:
        """hidden_dim, embed_dim: w_dim by default."""
        super().__init__()
        w_dim, embed_dim = config.w_dim, embed_dim or config.w_dim
        self.num_ws, self.cutoff = num_ws, num_ws if cutoff is None else cutoff
        self.embed = EqualizedLinear(config.c_dim, embed_dim)
        self.num_layers = num_layers
        hidden = [hidden_dim or w_dim] * (num_layers - 1)
        for i, sizes in enumerate(pairwise([config.z_dim + embed_dim, *hidden, w_dim])):
            layer = EqualizedLinear(*sizes, activation=activation, lr_multiplier=lr_multiplier)
            self.add_module(f"fc{i}", layer)
        self.register_buffer("w_avg", torch.empty(w_dim))

    def forward(self, latents: Tensor, vector: Tensor, truncation: float) -> list[Tensor]:
        hidden = torch.cat([unit_moment(latents), unit_moment(self.embed(vector))], 1)
        for i in range(self.num_layers):
            hidden = self.get_submodule(f"fc{i}")(hidden)
        truncated = hidden if truncation == 1 else self.w_avg.lerp(hidden, truncation)
        return [truncated if i < self.cutoff else hidden for i in range(self.num_ws)]


class StyleGANNetwork(nn.Module):
    """Latents [N, z_dim] and labels [N, K] -> images, about -1 to 1."""

    def __init__(self, config: StyleGANConfig, synthesis: nn.Module, mapping: Mapping) -> None:
        super().__init__()
        self.config, self.synthesis, self.mapping = config, synthesis, mapping

    def forward(self, latents: Tensor, vector: Tensor, truncation: float) -> Tensor:
        return self.synthesis(self.mapping(latents, vector, truncation))


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    padding: int = 0,
    up: bool = False,
) -> Tensor:
    """A convolution whose weights are W_oik s_i / sqrt(sum_ik (W_oik s_i)^2), for each sample's styles s [N, I].

    Karras et al. 2020 (arXiv:1912.04958, equations 1 to 3). Computed as one convolution of the batch: inputs are scaled
    by s and outputs by 1 / sqrt(...), which is the same up to rounding. up: insert zeros between the pixels first,
    [N, O, 2H+1, 2W+1] (the filter that follows makes it 2H x 2W).
    """
    x = x * styles[:, :, None, None]
    if up:
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    else:
        x = F.conv2d(x, weight, padding=padding)
    if not demodulate:
        return x
    power = styles.square() @ weight.square().sum((2, 3)).T
    return x * (power + 1e-8).rsqrt()[:, :, None, None]


def resample(
    x: Tensor,
    taps: Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int],
    gain: float = 1.0,
) -> Tensor:
    """Insert zeros between pixels (up), pad, convolve with a filter, keep every `down`-th pixel.

    x [N, C, H, W]; taps [T], applied along both axes, or [T, T], or None for no filter; padding (left, right, top,
    bottom), negative crops.
    """
    num, channels, height, width = x.shape
    if up > 1:
        x = F.pad(x[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(num, channels, height * up, width * up)
    x = F.pad(x, tuple(padding))
    if taps is None:
        return x[:, :, ::down, ::down] * gain
    taps = taps.flip(list(range(taps.dim()))).to(x.dtype)
    if taps.dim() == 2:
        kernel = (taps * gain).expand(channels, 1, *taps.shape)
        return F.conv2d(x, kernel, stride=down, groups=channels)
    taps = taps * math.sqrt(gain)
    x = F.conv2d(
        x, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), stride=(1, down), groups=channels
    )
    return F.conv2d(
        x, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), stride=(down, 1), groups=channels
    )
