"""`stylegan2-ada:FILE`: the layout of NVIDIA's PyTorch release (Karras et al. 2020, arXiv:2006.06676)."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ptgm_fast.generators.adapters.stylegan import StyleGAN, load_stylegan
from ptgm_fast.generators.adapters.stylegan_parts import (
    EqualizedLinear,
    Mapping,
    StyleGANConfig,
    StyleGANNetwork,
    activate,
    modulated_conv,
    resample,
)
from ptgm_fast.generators.files import PublishedConfig
from ptgm_fast.generators.request import Request


class MappingConfig(PublishedConfig):
    """Arguments of the mapping network. w_avg_beta: for training only, without effect here."""

    num_layers: int = Field(8, ge=1)
    embed_features: int | None = Field(None, ge=1)
    layer_features: int | None = Field(None, ge=1)
    activation: Literal["linear", "relu", "lrelu"] = "lrelu"
    lr_multiplier: float = Field(0.01, gt=0)
    w_avg_beta: float | None = 0.995


class SynthesisConfig(PublishedConfig):
    """Arguments of the synthesis network. num_fp16_res, fp16_channels_last, fused_modconv_default: without effect here;
    everything is computed in the module's dtype, in one way."""

    channel_base: int = Field(32768, ge=1)
    channel_max: int = Field(512, ge=1)
    num_fp16_res: int = 0
    fp16_channels_last: bool = False
    fused_modconv_default: bool | str = True
    architecture: Literal["orig", "skip", "resnet"] = "skip"
    resample_filter: tuple[float, ...] = (1, 3, 3, 1)
    conv_clamp: float | None = Field(None, gt=0)
    kernel_size: Literal[3] = 3
    use_noise: bool = True
    activation: Literal["linear", "relu", "lrelu"] = "lrelu"


class StyleGAN2Config(StyleGANConfig):
    """The arguments that the network was built with (its `init_kwargs`)."""

    img_resolution: int = Field(ge=4)
    mapping_kwargs: MappingConfig = MappingConfig()
    synthesis_kwargs: SynthesisConfig = SynthesisConfig()

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.img_resolution & (self.img_resolution - 1):
            raise ValueError(f"img_resolution {self.img_resolution} is not a power of 2")
        taps = self.synthesis_kwargs.resample_filter
        if len(taps) % 2 or len(taps) > 6:
            raise ValueError(f"resample_filter has {len(taps)} taps; supported: 2, 4 or 6")
        return self


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, upsampling first if `up`; noise, bias, activation."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, size: int, *, up: bool, config: SynthesisConfig
    ) -> None:
        super().__init__()
        self.up, self.config = up, config
        # A convolution that does not upsample keeps the default filter, whatever the network's filter.
        num_taps = len(config.resample_filter) if up else 4
        self.affine = EqualizedLinear(w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("resample_filter", torch.empty(num_taps, num_taps))
        if config.use_noise:
            self.register_buffer("noise_const", torch.empty(size, size))
            self.noise_strength = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor, style: Tensor, noise: bool, gain: float = 1.0) -> Tensor:
        # The upsampling convolution's stored kernel is for a convolution that flips it, as a transposed one does.
        x = modulated_conv(x, self.weight, self.affine(style), padding=1, up=self.up)
        if self.up:
            # The transposed convolution already provides one pixel of the padding that centers the filter.
            before, after = _upsampling_padding(len(self.resample_filter))
            padding = (before - 1, after, before - 1, after)
            x = resample(x, self.resample_filter, padding=padding, gain=4)
        if noise and self.config.use_noise:
            x = x + self.noise_const * self.noise_strength
        x = x + self.bias[:, None, None]
        return activate(x, self.config.activation, gain, self.config.conv_clamp)


def _upsampling_padding(num_taps: int) -> tuple[int, int]:
    return (num_taps + 1) // 2, (num_taps - 2) // 2


def upsample(x: Tensor, taps: Tensor) -> Tensor:
    """Upsample 2x: insert zeros between the pixels, then apply the low-pass filter."""
    before, after = _upsampling_padding(len(taps))
    return resample(x, taps, up=2, padding=(before, after, before, after), gain=4)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution without demodulation."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp, self.gain = clamp, 1 / math.sqrt(inputs)
        self.affine = EqualizedLinear(w_dim, inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        styles = self.affine(style) * self.gain
        x = modulated_conv(x, self.weight, styles, demodulate=False) + self.bias[:, None, None]
        return activate(x, "linear", clamp=self.clamp)


class Shortcut(nn.Module):
    """The residual architecture's shortcut: 1x1 convolution and upsampling."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int, num_taps: int) -> None:
        super().__init__()
        self.gain = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.register_buffer("resample_filter", torch.empty(num_taps, num_taps))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.weight * self.gain)
        return upsample(x, self.resample_filter)


class SynthesisBlock(nn.Module):
    """All layers of one resolution: (upsampling convolution,) convolution, (image)."""

    resample_filter: Tensor

    def __init__(
        self, inputs: int, outputs: int, size: int, *, last: bool, network: StyleGAN2Config
    ) -> None:
        super().__init__()
        config, w_dim = network.synthesis_kwargs, network.w_dim
        num_taps = len(config.resample_filter)
        self.first, self.residual = inputs == 0, inputs > 0 and config.architecture == "resnet"
        self.has_image = last or config.architecture == "skip"
        self.register_buffer("resample_filter", torch.empty(num_taps, num_taps))
        if self.first:
            self.const = nn.Parameter(torch.empty(outputs, size, size))
        else:
            self.conv0 = StyledConv(inputs, outputs, w_dim, size, up=True, config=config)
        self.conv1 = StyledConv(outputs, outputs, w_dim, size, up=False, config=config)
        if self.has_image:
            self.torgb = ToRGB(outputs, network.img_channels, w_dim, config.conv_clamp)
        if self.residual:
            self.skip = Shortcut(inputs, outputs, num_taps)

    @property
    def num_styles(self) -> int:
        """The number of styles for the convolutions; the image uses the next block's first style."""
        return 1 if self.first else 2

    def forward(
        self, x: Tensor | None, image: Tensor | None, styles: list[Tensor], noise: bool
    ) -> tuple[Tensor, Tensor | None]:
        gain = math.sqrt(0.5) if self.residual else 1.0
        if x is None:
            hidden = self.const.expand(styles[0].shape[0], -1, -1, -1)
        else:
            hidden = self.conv0(x, styles[0], noise)
        hidden = self.conv1(hidden, styles[self.num_styles - 1], noise, gain)
        if self.residual and x is not None:
            hidden = hidden + self.skip(x) * gain
        if image is not None:
            image = upsample(image, self.resample_filter)
        if self.has_image:
            made = self.torgb(hidden, styles[self.num_styles])
            image = made if image is None else image + made
        return hidden, image


class Synthesis(nn.Module):
    """Styles, one [N, w_dim] per layer -> images [N, C, S, S]."""

    def __init__(self, network: StyleGAN2Config, *, noise: bool) -> None:
        super().__init__()
        config, self.noise = network.synthesis_kwargs, noise
        self.sizes = [2**i for i in range(2, network.img_resolution.bit_length())]
        self.num_ws, inputs = 1, 0
        for size in self.sizes:
            outputs = min(config.channel_base // size, config.channel_max)
            last = size == self.sizes[-1]
            block = SynthesisBlock(inputs, outputs, size, last=last, network=network)
            self.add_module(f"b{size}", block)
            self.num_ws += block.num_styles
            inputs = outputs

    def forward(self, styles: list[Tensor]) -> Tensor:
        x: Tensor | None = None
        image: Tensor | None = None
        used = 0
        for size in self.sizes:
            block = self.get_submodule(f"b{size}")
            assert isinstance(block, SynthesisBlock)
            x, image = block(x, image, styles[used:], self.noise)
            used += block.num_styles
        assert image is not None
        return image


class StyleGAN2Network(StyleGANNetwork):
    """noise: add the constant noise that is stored with the weights."""

    def __init__(self, config: StyleGAN2Config, cutoff: int | None, *, noise: bool) -> None:
        mapping, synthesis = config.mapping_kwargs, Synthesis(config, noise=noise)
        styles = Mapping(
            config,
            num_ws=synthesis.num_ws,
            num_layers=mapping.num_layers,
            lr_multiplier=mapping.lr_multiplier,
            cutoff=cutoff,
            hidden_dim=mapping.layer_features,
            embed_dim=mapping.embed_features,
            activation=mapping.activation,
        )
        super().__init__(config, synthesis, styles)


def load(request: Request) -> StyleGAN:
    noise = request.choice("noise", ("const", "none"), "const")
    build = partial(StyleGAN2Network, noise=noise == "const")
    return load_stylegan(request, StyleGAN2Config, build, noise=noise)
