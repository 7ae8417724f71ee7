"""Compare a generator with its rewrite: what was done, and how fast both are in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ptgm_fast import generators, kernels
from ptgm_fast.generators import Generator, Optimized
from ptgm_fast.runs.task import choose_device


@dataclass(frozen=True)
class Rates:
    """Images per second of the original and the rewrite: medians of interleaved rounds at one batch size."""

    original: float
    rewritten: float


def optimize(
    uri: str,
    *,
    device: str,
    truncation: float | None,
    batch: int,
    rounds: int,
    on_notice: Callable[[str], None],
) -> tuple[Optimized, Rates | None]:
    """Load, rewrite, verify and time a generator; rounds=0 skips timing.

    Raises UserError and gives notices as `generators.load` and `generators.optimize` do.
    """
    generator = generators.load(uri, device=choose_device(device), on_notice=on_notice)
    optimized = generators.optimize(generator, truncation=truncation, on_notice=on_notice)
    rewritten = optimized.module
    assert isinstance(rewritten, Generator)
    rates = _rates(generator, rewritten, truncation, batch, rounds) if rounds else None
    return optimized, rates


@torch.no_grad()
def _rates(
    original: Generator, rewritten: Generator, truncation: float | None, batch: int, rounds: int
) -> Rates:
    card = original.card
    device = next(original.parameters()).device
    latents = kernels.latents(batch, card.latent_dim, seed=0, device=device)
    latents = latents.view(batch, *card.latent_shape).to(next(original.parameters()).dtype)
    labels = kernels.class_labels(batch, card.num_classes, seed=1, device=device)
    seconds: tuple[list[float], list[float]] = ([], [])
    # The first round of each is a warm-up. Rounds alternate, so that a disturbance affects both.
    for turn in range(rounds + 1):
        for generator, taken in zip((original, rewritten), seconds, strict=True):
            started = _now(device)
            generator.generate(latents, labels, truncation=truncation)
            if turn:
                taken.append(_now(device) - started)
    first, second = (batch / statistics.median(taken) for taken in seconds)
    return Rates(first, second)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
