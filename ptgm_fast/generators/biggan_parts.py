"""Self-attention as BigGAN and BigGAN-deep place it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    x: Tensor, theta: nn.Conv2d, phi: nn.Conv2d, g: nn.Conv2d, out: nn.Conv2d, gain: Tensor
) -> Tensor:
    """x + gain * out(softmax(theta(x)^T phi(x)) g(x)), keys and values max-pooled 2x.

    x [N, C, H, W], H and W even. Zhang et al. 2019 (arXiv:1805.08318), with the pooling of Brock et al. 2019
    (arXiv:1809.11096, appendix B).
    """
    queries = theta(x).flatten(2)
    keys = F.max_pool2d(phi(x), 2).flatten(2)
    values = F.max_pool2d(g(x), 2)
    weights = torch.softmax(queries.transpose(1, 2) @ keys, -1)
    mixed = values.flatten(2) @ weights.transpose(1, 2)
    mixed = mixed.view(x.shape[0], values.shape[1], x.shape[2], x.shape[3])
    return x + gain * out(mixed)
