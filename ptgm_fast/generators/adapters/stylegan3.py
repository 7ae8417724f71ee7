"""`stylegan3:FILE`: the layout of NVIDIA's PyTorch release (Karras et al. 2021, arXiv:2106.12423)."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ptgm_fast.generators.adapters.stylegan import StyleGAN, load_stylegan
from ptgm_fast.generators.adapters.stylegan_parts import (
    EqualizedLinear,
    Mapping,
    StyleGANConfig,
    StyleGANNetwork,
    modulated_conv,
    resample,
)
from ptgm_fast.generators.files import PublishedConfig
from ptgm_fast.generators.request import Request


class MappingConfig(PublishedConfig):
    """Arguments of the mapping network. w_avg_beta, freeze_*: for training only, without effect here."""

    num_layers: int = Field(2, ge=1)
    lr_multiplier: float = Field(0.01, gt=0)
    w_avg_beta: float | None = 0.998
    freeze_layers: int = 0
    freeze_embed: bool = False


class StyleGAN3Config(StyleGANConfig):
    """The arguments that the network was built with. num_fp16_res, magnitude_ema_beta: without effect here."""

    img_resolution: int = Field(ge=8)
    mapping_kwargs: MappingConfig = MappingConfig()
    channel_base: int = Field(32768, ge=1)
    channel_max: int = Field(512, ge=1)
    num_layers: int = Field(14, ge=3)
    num_critical: int = Field(2, ge=0)
    first_cutoff: float = Field(2, gt=0)
    first_stopband: float = Field(2**2.1, gt=0)
    last_stopband_rel: float = Field(2**0.3, gt=0)
    margin_size: int = Field(10, ge=0)
    output_scale: float = 0.25
    num_fp16_res: int = 4
    conv_kernel: Literal[1, 3] = 3
    filter_size: int = Field(6, ge=1)
    lrelu_upsampling: int = Field(2, ge=1)
    use_radial_filters: bool = False
    conv_clamp: float | None = Field(256, gt=0)
    magnitude_ema_beta: float = 0.999

    @model_validator(mode="after")
    def _layers(self) -> Self:
        if self.num_critical >= self.num_layers:
            raise ValueError(
                f"num_critical {self.num_critical} must be less than num_layers {self.num_layers}"
            )
        return self


class Signal:
    """Cutoffs, sampling rates, sizes and channels of every layer: a geometric progression (section 4 of the paper)."""

    def __init__(self, config: StyleGAN3Config) -> None:
        last = config.img_resolution / 2
        steps = np.arange(config.num_layers + 1) / (config.num_layers - config.num_critical)
        exponents = np.minimum(steps, 1)
        self.cutoffs = config.first_cutoff * (last / config.first_cutoff) ** exponents
        last_stop = last * config.last_stopband_rel
        stops = config.first_stopband * (last_stop / config.first_stopband) ** exponents
        rates = np.exp2(np.ceil(np.log2(np.minimum(stops * 2, config.img_resolution))))
        self.rates = rates.astype(int)
        sizes = self.rates + config.margin_size * 2
        sizes[-2:] = config.img_resolution
        self.sizes = sizes
        channels = np.rint(np.minimum(config.channel_base / 2 / self.cutoffs, config.channel_max))
        channels[-1] = config.img_channels
        self.channels = channels.astype(int)


class FourierFeatures(nn.Module):
    """sin(2 pi (f . p + phase)) on a grid of points p, rotated and shifted by the first style, then a 1x1 convolution."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, channels: int, size: int, rate: float, bandwidth: float) -> None:
        super().__init__()
        self.size, self.rate, self.bandwidth = size, rate, bandwidth
        self.weight = nn.Parameter(torch.empty(channels, channels))
        self.affine = EqualizedLinear(w_dim, 4)
        self.register_buffer("transform", torch.empty(3, 3))
        self.register_buffer("freqs", torch.empty(channels, 2))
        self.register_buffer("phases", torch.empty(channels))

    def forward(self, style: Tensor) -> Tensor:
        # The user's transform T comes last: [cos, -sin, 0; sin, cos, 0] [1, 0, -x; 0, 1, -y] T.
        turned = self.affine(style)
        cosine, sine, x, y = (turned / turned[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        rotation = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], 1)
        shift = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1)
        transform = rotation.view(-1, 3, 3) @ shift.view(-1, 3, 3) @ self.transform
        phases = self.phases + (self.freqs @ transform[:, :2, 2:]).squeeze(2)
        freqs = self.freqs @ transform[:, :2, :2]
        # Frequencies that a transform would push beyond the band are faded out.
        excess = (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)
        amplitudes = (1 - excess).clamp(0, 1)
        # Pixel centers; the unit is an image side of `rate` pixels.
        places = (torch.arange(self.size, device=style.device, dtype=style.dtype) + 0.5) / self.rate
        places = places - self.size / 2 / self.rate
        grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).view(-1, 2)
        waves = torch.sin(2 * math.pi * (grid @ freqs.transpose(1, 2) + phases[:, None, :]))
        features = (waves * amplitudes[:, None, :]) @ (self.weight / math.sqrt(len(self.weight))).T
        return features.transpose(1, 2).reshape(style.shape[0], -1, self.size, self.size)


class FilteredLayer(nn.Module):
    """Modulated convolution, then bias, upsampling, leaky ReLU, downsampling, to avoid aliasing (appendix C.3)."""

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, config: StyleGAN3Config, signal: Signal, index: int) -> None:
        super().__init__()
        before, last = max(index - 1, 0), index == config.num_layers
        inputs, outputs = int(signal.channels[before]), int(signal.channels[index])
        critical = index >= config.num_layers - config.num_critical
        self.last, self.clamp = last, config.conv_clamp
        self.kernel = 1 if last else config.conv_kernel
        self.affine = EqualizedLinear(config.w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, self.kernel, self.kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("magnitude_ema", torch.empty(()))
        rate_in, rate_out = int(signal.rates[before]), int(signal.rates[index])
        between = max(rate_in, rate_out) * (1 if last else config.lrelu_upsampling)
        self.up, self.down = between // rate_in, between // rate_out
        up_taps, down_taps = (
            config.filter_size * factor if factor > 1 and not last else 1
            for factor in (self.up, self.down)
        )
        # The filters are part of the weights, except for filters of one tap.
        radial = config.use_radial_filters and not critical
        shape = [down_taps] * (2 if radial else 1)
        self.register_buffer("up_filter", torch.empty(up_taps) if up_taps > 1 else None)
        self.register_buffer("down_filter", torch.empty(shape) if down_taps > 1 else None)
        total = (int(signal.sizes[index]) - 1) * self.down + 1
        total -= (int(signal.sizes[before]) + self.kernel - 1) * self.up
        total += up_taps + down_taps - 2
        first = (total + self.up) // 2
        self.padding = (first, total - first) * 2

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        styles = self.affine(style)
        if self.last:
            styles = styles / math.sqrt(self.weight[0].numel())
        weight: Tensor = self.weight
        if not self.last:
            # Demodulation cancels the scale of the weights, except for its epsilon.
            weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        x = x * self.magnitude_ema.rsqrt()
        x = modulated_conv(x, weight, styles, demodulate=not self.last, padding=self.kernel - 1)
        x = x + self.bias[:, None, None]
        x = resample(x, self.up_filter, up=self.up, padding=self.padding, gain=self.up**2)
        if not self.last:
            x = F.leaky_relu(x, 0.2) * math.sqrt(2)
        if self.clamp is not None:
            x = x.clamp(-self.clamp, self.clamp)
        return resample(x, self.down_filter, down=self.down, padding=(0, 0, 0, 0))


class Synthesis(nn.Module):
    """Styles, one [N, w_dim] per layer -> images [N, C, S, S]."""

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        signal = Signal(config)
        self.scale, self.num_ws = config.output_scale, config.num_layers + 2
        self.input = FourierFeatures(
            config.w_dim,
            int(signal.channels[0]),
            int(signal.sizes[0]),
            float(signal.rates[0]),
            float(signal.cutoffs[0]),
        )
        self.names = []
        for index in range(config.num_layers + 1):
            name = f"L{index}_{signal.sizes[index]}_{signal.channels[index]}"
            self.add_module(name, FilteredLayer(config, signal, index))
            self.names.append(name)

    def forward(self, styles: list[Tensor]) -> Tensor:
        x = self.input(styles[0])
        for name, style in zip(self.names, styles[1:], strict=True):
            x = self.get_submodule(name)(x, style)
        return x * self.scale


class StyleGAN3Network(StyleGANNetwork):
    def __init__(self, config: StyleGAN3Config, cutoff: int | None) -> None:
        mapping, synthesis = config.mapping_kwargs, Synthesis(config)
        styles = Mapping(
            config,
            num_ws=synthesis.num_ws,
            num_layers=mapping.num_layers,
            lr_multiplier=mapping.lr_multiplier,
            cutoff=cutoff,
        )
        super().__init__(config, synthesis, styles)


def load(request: Request) -> StyleGAN:
    return load_stylegan(request, StyleGAN3Config, StyleGAN3Network)
