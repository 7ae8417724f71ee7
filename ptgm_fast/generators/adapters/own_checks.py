"""Checks of a user's module before a run relies on it: a few samples reveal mistakes that would spoil the images."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator

# Relative to the largest value: how much half-precision networks vary between batches, and what counts as equal.
BATCHES_DIFFER, SAME = 2e-2, 1e-6
# No network with output range [-1, 1] goes this far beyond it.
OTHER_SCALE = 8.0


@torch.no_grad()
def look_at(
    generator: AdaptedGenerator, what: str, *, stated: bool, on_notice: Callable[[str], None]
) -> tuple[int, int]:
    """Check a generator in evaluation mode. Returns the side and channels of its images.

    stated: whether the user gave the output range. on_notice is called if a label or a latent changes nothing, and if
    values are outside the range. Raises UserError if the network fails or does not return square images with 1 or 3
    channels, if a sample depends on its batch, if its values are on another scale, and if a mixture of one class differs
    from that class. torch's RNG state is preserved.
    """
    card = generator.card
    z = kernels.latents(2, card.latent_dim, seed=0).view(2, *card.latent_shape)[[0, 1, 0]]
    y = torch.tensor([0, 0, min(1, card.num_classes - 1)])
    with torch.random.fork_rng([]):
        before = torch.get_rng_state()
        images = _images(generator, z, y, what)
        noisy = not torch.equal(before, torch.get_rng_state())
        alone = _images(generator, z[1:2], y[1:2], what)
        plain = generator(z, y) if _mixes(generator) and not noisy else images
    images, alone, plain = images.float(), alone.float(), plain.float()
    _check_range(images, card.output_range, what, stated=stated, on_notice=on_notice)
    # Noise from torch's RNG differs for every row; runs detect it themselves and make their batches in order.
    if not noisy:
        if _apart(images[1:2], alone) > BATCHES_DIFFER:
            raise UserError(
                f"{what}: the same latent and class gave a different image alone than in a batch of {len(z)}, but a sample "
                "must be the same in any batch. Usual causes: batch statistics (a norm in training mode), and the module's own "
                "random numbers: derive these from the latents instead"
            )
        if card.num_classes > 1 and _apart(images[:1], images[2:]) <= SAME:
            on_notice(
                f"{what}: classes 0 and 1 give the same image: the network ignores its label (is it unconditional?)"
            )
        if _apart(images[:1], images[1:2]) <= SAME:
            on_notice(f"{what}: two latents give the same image: the network ignores its latents")
        if _apart(images, plain) > BATCHES_DIFFER:
            raise UserError(
                f"{what}: its embeddings cannot be mixed: a class and its own embedding give different images, so the network "
                "uses its labels in other ways too; use soft=sample-class"
            )
    return images.shape[2], images.shape[1]


def _mixes(generator: AdaptedGenerator) -> bool:
    """Whether mixtures of classes are put into the network's tables while it runs."""
    return (generator.card.condition, generator.card.soft_labels) == (
        "class-index",
        "mix-embedding",
    )


def _images(generator: AdaptedGenerator, z: Tensor, y: Tensor, what: str) -> Tensor:
    card = generator.card
    try:
        images = generator.generate(z, y)
    except Exception as error:  # whatever the user's code raises
        hint = "its forward takes (latents, condition)"
        if _mixes(generator):
            hint += (
                ", and mixtures are looked up in its class tables by indices beyond their rows: soft=sample-class avoids "
                "that"
            )
        raise UserError(
            f"{what}: the network failed on latents {list(z.shape)} and a {card.condition} condition "
            f"({raised(error)}); {hint}"
        ) from error
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[2] != images.shape[3]:
        shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UserError(
            f"{what}: the network returned {shape}; expected square images [N, C, S, S]"
        )
    if len(images) != len(z):
        raise UserError(f"{what}: the network returned {len(images)} images for {len(z)} latents")
    if images.shape[1] not in (1, 3):
        raise UserError(
            f"{what}: the network makes images with {images.shape[1]} channels; accepted: 1 (grey) or 3 (colour). Composite "
            "RGBA over a background in its forward"
        )
    return images


def _check_range(
    images: Tensor,
    expected: tuple[float, float],
    what: str,
    *,
    stated: bool,
    on_notice: Callable[[str], None],
) -> None:
    least, greatest = images.min().item(), images.max().item()
    found = f"its images have values from {least:.3g} to {greatest:.3g}"
    low, high = expected
    slack = 0.1 * (high - low)
    beyond = least < low - slack or greatest > high + slack
    asked = "state it: ?output_range=MIN,MAX, or the attribute output_range"
    if not torch.isfinite(images).all():
        raise UserError(f"{what}: its images contain values that are not finite")
    if beyond and not stated and max(-least, greatest) > OTHER_SCALE:
        guess = "0,255" if least >= 0 and greatest < 256 else "MIN,MAX"
        raise UserError(
            f"{what}: {found}, but no output_range is stated, which means -1,1; {asked.replace('MIN,MAX', guess)}"
        )
    if beyond:
        on_notice(
            f"{what}: {found}; the output_range {low:g},{high:g} does not contain them"
            + ("" if stated else f". If another is meant, {asked}")
        )
    elif not stated and 0 <= least < greatest:
        on_notice(
            f"{what}: {found}, none negative, and are read as -1 to 1. If 0 to 1 is meant, state it: ?output_range=0,1; "
            "output_range=-1,1 silences this notice"
        )


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to max(1, largest value)."""
    return ((a - b).abs().max() / a.abs().max().clamp(min=1)).item()


def raised(error: BaseException) -> str:
    """What the user's code raised, and where, in one line."""
    text = " ".join(str(error).split())
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and "ptgm_fast" not in frame.filename
    ]
    place = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {text}{place}"
