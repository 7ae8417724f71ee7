"""`biggan-deep:DIR_OR_FILE`: Hugging Face's pytorch-pretrained-biggan (weights converted from DeepMind's TF Hub)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.adapters.biggan import attend
from ptgm_fast.generators.card import AdapterCard, FileCard
from ptgm_fast.generators.files import PublishedConfig, find, read_json, read_weights, validated
from ptgm_fast.generators.request import Request
from ptgm_fast.models.checkpoints import split_choice
from ptgm_fast.models.hub import local
from ptgm_fast.models.weights import load_state

WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


class BigGANDeepConfig(PublishedConfig):
    """config.json. layers: (upsample, input width, output width), widths in units of channel_width."""

    output_dim: int = Field(ge=8)
    z_dim: int = Field(ge=1)
    class_embed_dim: int = Field(ge=1)
    channel_width: int = Field(ge=3)
    num_classes: int = Field(ge=1)
    layers: tuple[tuple[bool, int, int], ...] = Field(min_length=1)
    attention_layer_position: int
    eps: float = Field(gt=0)
    n_stats: int = Field(ge=2)


class TruncatedNorm(nn.Module):
    """Batch norm with statistics for each of n_stats truncations 0, 1 / (n_stats - 1), ..., 1.

    y = (x - mean_t) / sqrt(var_t + eps) * gain + offset; gain = 1 + scale(c) and offset(c) are linear in a condition
    c [N, D], or plain parameters without one (condition_dim None).
    """

    def __init__(self, channels: int, condition_dim: int | None, config: BigGANDeepConfig) -> None:
        super().__init__()
        self.register_buffer("running_means", torch.zeros(config.n_stats, channels))
        self.register_buffer("running_vars", torch.ones(config.n_stats, channels))
        self.eps = config.eps
        self.step = 1 / (config.n_stats - 1)
        if condition_dim is None:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.scale = nn.Linear(condition_dim, channels, bias=False)
            self.offset = nn.Linear(condition_dim, channels, bias=False)

    def statistics(self, truncation: float) -> tuple[Tensor, Tensor]:
        """Mean and variance [C] at a truncation."""
        fraction, index = math.modf(truncation / self.step)
        first = int(index)
        means, variances = self.get_buffer("running_means"), self.get_buffer("running_vars")
        if fraction == 0:
            return means[first], variances[first]
        # The fraction weights the lower entry: this is how the package that published this layout interpolates, and
        # its samples are the reference. At multiples of the step (0.02 for the published weights) it does not matter.
        mean, variance = (
            rows[first] * fraction + rows[first + 1] * (1 - fraction) for rows in (means, variances)
        )
        return mean, variance

    def forward(self, x: Tensor, truncation: float, condition: Tensor | None = None) -> Tensor:
        mean, variance = self.statistics(truncation)
        if condition is None:
            return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        normal = (x - mean[None, :, None, None]) / torch.sqrt(variance + self.eps)[
            None, :, None, None
        ]
        gain = 1 + self.scale(condition)
        return normal * gain[:, :, None, None] + self.offset(condition)[:, :, None, None]


class DeepBlock(nn.Module):
    """Norm, ReLU, convolution, four times (1x1, 3x3, 3x3, 1x1; a bottleneck of a quarter), and a shortcut.

    Upsampling comes before the first 3x3; where the block narrows, the shortcut keeps only the first half of the
    channels. Brock et al. 2019, appendix B, figure 16.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition_dim: int,
        upsample: bool,
        config: BigGANDeepConfig,
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.kept = inputs if inputs == outputs else inputs // 2
        middle = inputs // 4
        self.bn_0 = TruncatedNorm(inputs, condition_dim, config)
        self.conv_0 = nn.Conv2d(inputs, middle, 1)
        self.bn_1 = TruncatedNorm(middle, condition_dim, config)
        self.conv_1 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_2 = TruncatedNorm(middle, condition_dim, config)
        self.conv_2 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_3 = TruncatedNorm(middle, condition_dim, config)
        self.conv_3 = nn.Conv2d(middle, outputs, 1)

    def forward(self, x: Tensor, truncation: float, condition: Tensor) -> Tensor:
        hidden = self.conv_0(F.relu(self.bn_0(x, truncation, condition)))
        hidden = F.relu(self.bn_1(hidden, truncation, condition))
        shortcut = x[:, : self.kept]
        if self.upsample:
            hidden = F.interpolate(hidden, scale_factor=2, mode="nearest")
            shortcut = F.interpolate(shortcut, scale_factor=2, mode="nearest")
        hidden = self.conv_1(hidden)
        hidden = self.conv_2(F.relu(self.bn_2(hidden, truncation, condition)))
        return self.conv_3(F.relu(self.bn_3(hidden, truncation, condition))) + shortcut


class DeepAttention(nn.Module):
    """`attend` under this layout's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.snconv1x1_theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.snconv1x1_g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.snconv1x1_o_conv = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, truncation: float, condition: Tensor) -> Tensor:
        return attend(
            x,
            self.snconv1x1_theta,
            self.snconv1x1_phi,
            self.snconv1x1_g,
            self.snconv1x1_o_conv,
            self.gamma,
        )


class BigGANDeepNetwork(nn.Module):
    """The condition c = [z, e] -> images in (-1, 1)."""

    def __init__(self, config: BigGANDeepConfig) -> None:
        super().__init__()
        self.width = width = config.channel_width
        condition_dim = config.z_dim + config.class_embed_dim
        self.gen_z = nn.Linear(condition_dim, 4 * 4 * 16 * width)
        self.layers = nn.ModuleList()
        for position, (upsample, inputs, outputs) in enumerate(config.layers):
            if position == config.attention_layer_position:
                self.layers.append(DeepAttention(width * inputs))
            self.layers.append(
                DeepBlock(width * inputs, width * outputs, condition_dim, upsample, config)
            )
        self.bn = TruncatedNorm(width, None, config)
        self.conv_to_rgb = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, condition: Tensor, truncation: float) -> Tensor:
        # The Linear's outputs are ordered as TensorFlow's images: row, column, channel.
        hidden = self.gen_z(condition).view(-1, 4, 4, 16 * self.width).permute(0, 3, 1, 2)
        hidden = hidden.contiguous()
        for layer in self.layers:
            hidden = layer(hidden, truncation, condition)
        # The layout stores `width` output channels; the first three are the image.
        return torch.tanh(self.conv_to_rgb(F.relu(self.bn(hidden, truncation)))[:, :3])


class BigGANDeep(AdaptedGenerator):
    """BigGAN-deep. truncation None is 1.0, the statistics of untruncated latents."""

    def __init__(self, card: AdapterCard, config: BigGANDeepConfig) -> None:
        super().__init__()
        self.card = card
        self.embeddings = nn.Linear(config.num_classes, config.class_embed_dim, bias=False)
        self.generator = BigGANDeepNetwork(config)

    @property
    def class_table(self) -> Tensor:
        return self.embeddings.weight.T

    def forward(self, latents: Tensor, embedding: Tensor, truncation: float = 1.0) -> Tensor:
        """Images from latents [N, z_dim] and class embeddings [N, class_embed_dim], with the statistics of a truncation."""
        return self.generator(torch.cat([latents, embedding], 1), truncation)


def bake_torch(state: dict[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Bake `torch.nn.utils.spectral_norm` into the weights: weight_orig, weight_u, weight_v become weight = W / (u . W v).

    W is viewed as [first dimension, the rest]. Miyato et al. 2018 (arXiv:1802.05957), with the vectors as stored, as
    torch does in evaluation. Modifies the tensors of `state` in place, so that nothing is held twice. Raises UserError
    if a vector is missing or does not fit.
    """
    baked = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last in ("weight_u", "weight_v") and f"{stem}.weight_orig" in state:
            continue
        if last != "weight_orig":
            baked[name] = tensor.clone()
            continue
        u, v = (_vector(state, f"{stem}.weight_{side}", where) for side in "uv")
        matrix = tensor.flatten(1)
        if matrix.shape != (len(u), len(v)):
            raise UserError(
                f"{where}: spectral norm vectors of {stem!r} have lengths {len(u)} and {len(v)} "
                f"for a weight of shape {list(tensor.shape)}"
            )
        baked[f"{stem}.weight"] = tensor.div_(torch.dot(u, matrix @ v))
    return baked


def _vector(state: dict[str, Tensor], name: str, where: str) -> Tensor:
    vector = state.get(name)
    if vector is None or vector.dim() != 1:
        raise UserError(f"{where}: missing: {name} [n], a vector of its spectral norm")
    return vector


def load(request: Request) -> BigGANDeep:
    """Build on the meta device, memory-map the file, bake spectral norm in place, assign the tensors."""
    what, (given, choice) = request.what, split_choice(request.target)
    place = local(given, what=what)
    weights = find(place, WEIGHTS, what=what) if place.is_dir() else place
    config_path = Path(request.take("config") or weights.with_name("config.json"))
    request.done()
    file = FileCard.of(weights, request.sha256, what=what)
    where = f"{what}: {str(config_path)!r}"
    config = validated(BigGANDeepConfig, read_json(config_path, what=what), where=where)
    size = 4 * 2 ** sum(upsample for upsample, _, _ in config.layers)
    if size != config.output_dim:
        raise UserError(
            f"{where}: output_dim is {config.output_dim}, but the layers make {size}x{size}"
        )
    widths = [16, *(outputs for _, _, outputs in config.layers)]
    if [inputs for _, inputs, _ in config.layers] != widths[:-1] or widths[-1] != 1:
        raise UserError(
            f"{where}: each layer's input width must be the output width of the layer before, from 16 to 1"
        )
    card = request.card(
        name=given.name,
        architecture="biggan-deep",
        num_classes=config.num_classes,
        latent_dim=config.z_dim,
        embedding_dim=config.class_embed_dim,
        image_size=size,
        condition="class-embedding",
        truncation="selects-statistics",
        files={weights.name: file},
    )
    with torch.device("meta"):
        generator = BigGANDeep(card, config)
    state = bake_torch(
        read_weights(f"{weights}#{choice}" if choice else weights, what=what), where=what
    )
    load_state(generator, state, where=f"{what}: {str(weights)!r}", assign=True)
    return generator
