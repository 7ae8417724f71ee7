"""The sampler as a Lightning module's training data.

python examples/lightning_module.py
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from plain_loop import small_network
from torch.utils.data import DataLoader

from ptgm_fast import FastSampler, generators


class PseudoPreTraining(lightning.LightningModule):
    def __init__(self, sampler: FastSampler, num_classes: int, num_batches: int) -> None:
        super().__init__()
        self.sampler, self.num_batches = sampler, num_batches
        self.network = small_network(num_classes)
        self.losses: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.sampler.uniform(self.num_batches), batch_size=None)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.network(batch.images), batch.labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=3e-3)


def main(num_batches: int = 100) -> list[float]:
    torch.manual_seed(0)
    generator = generators.optimize(generators.load("letters")).module
    with FastSampler(generator, batch_size=64, views="weak") as sampler:
        module = PseudoPreTraining(sampler, generator.card.num_classes, num_batches)
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
    print(f"loss {module.losses[0]:.2f} -> {sum(module.losses[-10:]) / 10:.2f}")
    return module.losses


if __name__ == "__main__":
    main()
