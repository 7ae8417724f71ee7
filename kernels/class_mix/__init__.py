"""Soft labels mixed in the generator's class-embedding space: `class_mix`."""

from __future__ import annotations

from torch import Tensor

from . import reference


def class_mix(
    logits: Tensor,
    embedding: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    impl: str | None = None,
) -> Tensor:
    """softmax(logits / temperature) @ embedding, [N, D]."""
    return reference.class_mix(logits, embedding, temperature, top_k)
