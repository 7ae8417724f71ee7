"""The project's own small networks, sized for images of about 28x28 and two CPU cores."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class SmallCNN(nn.Sequential):
    """Three 3x3 convolutions with batch norm (two of stride 2) and a linear head on the flattened map."""

    def __init__(
        self, *, num_classes: int, channels: int, image_size: int, width: int = 24
    ) -> None:
        widths = (width, width * 8 // 3, width * 4)
        side = (image_size + 3) // 4
        super().__init__(
            *_conv_norm_act(channels, widths[0], stride=2),
            *_conv_norm_act(widths[0], widths[1], stride=1),
            *_conv_norm_act(widths[1], widths[2], stride=2),
            nn.Flatten(),
            nn.Linear(widths[2] * side * side, num_classes),
        )


def _conv_norm_act(inputs: int, outputs: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a (projected) identity: ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """A stem of stride 2 and three residual blocks, global average pooling, a linear head."""

    def __init__(
        self, *, num_classes: int, channels: int, image_size: int, width: int = 16
    ) -> None:
        super().__init__()
        del (
            image_size
        )  # unused: works at any size; accepted so that all own networks are built alike
        self.stem = nn.Sequential(*_conv_norm_act(channels, width, stride=2))
        self.blocks = nn.Sequential(
            ResidualBlock(width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


SMALL_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn-small": SmallCNN,
    "resnet-small": SmallResNet,
}
