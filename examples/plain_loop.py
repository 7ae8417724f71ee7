"""Pseudo pre-training in your own loop: uniform labels of the bundled letters, any network.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ptgm_fast import FastSampler, generators


def small_network(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, num_classes),
    )


def main(num_batches: int = 200) -> list[float]:
    torch.manual_seed(0)
    generator = generators.optimize(generators.load("letters")).module
    network = small_network(generator.card.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    # Leaving the block stops the sampler's thread, even after an exception.
    with FastSampler(generator, batch_size=64, views="weak") as sampler:
        for batch in sampler.uniform(num_batches):
            loss = F.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"loss {losses[0]:.2f} -> {sum(losses[-10:]) / 10:.2f}; {sampler.summary()}")
    return losses


if __name__ == "__main__":
    main()
