"""The generators that are timed. They have random weights: speed does not depend on training."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

LAYERS = [(False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8), (True, 8, 4),
          (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1)]  # fmt: skip


def biggan_deep() -> nn.Module:
    """BigGAN-deep 128 of pytorch-pretrained-biggan, in its published configuration."""
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig

    torch.manual_seed(0)
    model = BigGAN(BigGANConfig(output_dim=128, z_dim=128, class_embed_dim=128, channel_width=128, num_classes=1000,
                                layers=LAYERS, attention_layer_position=8, eps=1e-4, n_stats=51))  # fmt: skip
    # Fresh gains and offsets of the last norm and of the attention are 0, so nothing would show.
    for name, value in model.state_dict().items():
        if name.endswith("running_means"):
            value.normal_(0, 0.3)
        elif name.endswith("running_vars"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("gamma") or name == "generator.bn.weight":
            value.fill_(0.7)
        elif name == "generator.bn.bias":
            value.fill_(0.1)
    for _ in range(3):
        # The singular vectors start at random: until the power iteration converges, sigma is far too small.
        model(torch.randn(2, 128), torch.eye(1000)[:2], 0.4)
    return model.eval().requires_grad_(False)


class DCGAN(nn.Module):
    """Radford et al. 2015 (arXiv:1511.06434): transposed convolutions, 64x64, one-hot labels beside the latents."""

    def __init__(self) -> None:
        super().__init__()
        widths = (110, 512, 256, 128, 64)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            conv = nn.ConvTranspose2d(inputs, outputs, 4, 1 + (i > 0), int(i > 0), bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh()]
        self.net = nn.Sequential(*layers)

    def forward(self, latents: Tensor, one_hot: Tensor) -> Tensor:
        return self.net(torch.cat([latents, one_hot], 1)[:, :, None, None])


def dcgan() -> nn.Module:
    torch.manual_seed(0)
    return DCGAN().eval().requires_grad_(False)
