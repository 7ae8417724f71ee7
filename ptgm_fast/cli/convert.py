"""`ptgm-fast convert`."""

from __future__ import annotations

from pathlib import Path

from ptgm_fast.cli.ui import console
from ptgm_fast.generators.adapters.convert import convert


def run(source: Path, out: Path | None, network: str) -> None:
    done = convert(source, out or source.with_suffix(".safetensors"), network=network)
    card = done.card
    console.print(
        f"{card.architecture}: {card.num_classes} classes, {card.channels}x{card.image_size}x{card.image_size}\n"
        f"sha256 {done.sha256}\n"
        f'source.generator = "{done.uri}"',
        soft_wrap=True,
    )
