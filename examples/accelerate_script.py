"""The sampler in a script for Hugging Face's accelerate.

accelerate launch examples/accelerate_script.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from plain_loop import small_network

from ptgm_fast import FastSampler, generators


def main(num_batches: int = 100) -> list[float]:
    accelerator = Accelerator()
    torch.manual_seed(0)
    generator = generators.optimize(generators.load("letters")).module
    network = small_network(generator.card.num_classes)
    network, optimizer = accelerator.prepare(
        network, torch.optim.Adam(network.parameters(), lr=3e-3)
    )
    losses = []
    # Each process makes its own samples: same seed, different start.
    start = accelerator.process_index * num_batches * 64
    with FastSampler(generator, batch_size=64, views="weak", device=accelerator.device) as sampler:
        for batch in sampler.uniform(num_batches, start=start):
            loss = F.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    accelerator.print(f"loss {losses[0]:.2f} -> {sum(losses[-10:]) / 10:.2f}")
    return losses


if __name__ == "__main__":
    main()
