"""Whose statistics batch norm uses when labelled and pseudo images meet in one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ptgm_fast.models import TargetNetwork


def joint_features(
    network: TargetNetwork, labelled: Tensor, pseudo: Tensor, policy: str
) -> tuple[Tensor, Tensor]:
    """Features of the labelled and of the pseudo images under a batch-norm policy.

    concat: one forward of both; batch and running statistics mix them.
    split: two forwards; each is normalised by its own batch, running statistics follow the labelled images only.
    target-only: the pseudo images are normalised by the running statistics of the labelled images.
    Returns [N, D] and [M, D]. Gradients flow through both.
    """
    if policy == "concat":
        features = network.features(torch.cat([labelled, pseudo]))
        return features[: len(labelled)], features[len(labelled) :]
    features = network.features(labelled)
    with frozen_statistics(network, use_running=policy == "target-only"):
        return features, network.features(pseudo)


@contextmanager
def frozen_statistics(module: nn.Module, *, use_running: bool) -> Iterator[None]:
    """Within the block batch norm leaves its running statistics alone, and uses them if `use_running`."""
    layers = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for layer in layers:
        if use_running:
            layer.eval()
        else:
            layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
            layer.track_running_stats = True
