"""The sampler as the dataset of torch's DataLoader, whose workers share the batches.

python examples/data_loader.py
"""

from __future__ import annotations

from torch.utils.data import DataLoader

from ptgm_fast import FastSampler, generators


def main(num_batches: int = 12, num_workers: int = 2) -> list[int]:
    generator = generators.optimize(generators.load("letters")).module
    with FastSampler(generator, batch_size=64, views=("weak", "strong")) as sampler:
        # batch_size=None: the sampler makes the batches. Each worker uses one thread.
        loader = DataLoader(sampler.uniform(num_batches), batch_size=None, num_workers=num_workers)
        firsts = [int(batch.indices[0]) for batch in loader]
    print(f"{len(firsts)} batches, samples {firsts[0]} to {firsts[-1] + 63}")
    return firsts


if __name__ == "__main__":
    main()
