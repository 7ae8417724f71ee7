"""What a view may do to an image: validated ranges of random parameters, and named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

# The operations that `num_ops` chooses from, in the order in which a view applies them.
CHOOSABLE = (
    "translate",
    "rotate",
    "scale",
    "shear",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "posterize",
    "solarize",
)
# Grey images have no saturation or hue: these operations leave them unchanged and are never chosen for them.
COLOUR_ONLY = ("saturation", "hue")

# name: (lowest, highest, meaning), bounds included.
_RANGES: dict[str, tuple[float, float, str]] = {
    "flip": (0.0, 1.0, "probability of a horizontal flip"),
    "translate": (0.0, 1.0, "largest shift, as a fraction of the side"),
    "rotate": (0.0, 180.0, "largest rotation in degrees"),
    "shear": (0.0, 80.0, "largest horizontal shear in degrees"),
    "brightness": (0.0, 10.0, "largest change of the brightness factor"),
    "contrast": (0.0, 10.0, "largest change of the contrast factor"),
    "saturation": (0.0, 10.0, "largest change of the saturation factor"),
    "hue": (0.0, 0.5, "largest hue rotation, as a fraction of the colour circle"),
    "posterize": (1, 8, "fewest bits kept"),
    "solarize": (0.0, 1.0, "largest part of the range that is inverted"),
    "cutout": (0.0, 1.0, "side of the square, as a fraction of the image's shorter side"),
    "num_ops": (0, len(CHOOSABLE), "operations applied to each sample"),
    "magnitude": (0.0, 1.0, "strength of the chosen ranges"),
    "fill": (-1.0, 1.0, "value outside the image"),
}
_INTEGERS = ("posterize", "num_ops")


@dataclass(frozen=True)
class ViewSpec:
    """Ranges from which each sample draws its own parameters; the default changes nothing.

    Operations are applied in this order (U is the uniform distribution, m the magnitude):

    ==============  =========================================================================================
    flip            horizontal flip with this probability
    translate       shift by U(-m t, m t) of the width and of the height, independently
    rotate          by U(-m r, m r) degrees about the centre, clockwise
    scale           (lo, hi): zoom by U(1 + m (lo - 1), 1 + m (hi - 1)); above 1 enlarges
    shear           horizontal, by U(-m s, m s) degrees
    brightness      u -> f u, f from U(max(0, 1 - m b), 1 + m b), u the pixel in [0, 1]
    contrast        u -> 1/2 + f (u - 1/2), f likewise; the pivot is mid-grey, not the image's mean, so that a
                    view reads the image only once
    saturation      u -> grey + f (u - grey), f likewise, grey the BT.601 luma
    hue             rotation of the colour about the grey axis by U(-m h, m h) turns (equal to the shift of the HSV
                    hue at thirds of a turn, and linear between)
    posterize       keep U{b, ..., 8} bits, b this value moved towards 8 by m; 8 bits leave the pixel unchanged
    solarize        invert u >= T, T from U(1 - m s, 1)
    cutout          set a square to the fill value; its side is this fraction of the shorter side, its centre is
                    uniform, and it is clipped at the border
    ==============  =========================================================================================

    Brightness, contrast, saturation and hue are one matrix product, after which values are clipped to [0, 1] once.
    ``num_ops`` = n > 0 applies n different operations to each sample, drawn from those of translate ... solarize
    for which the spec sets a range (as in RandAugment, arXiv:1909.13719, but in the fixed order above, so that
    geometry stays one resampling and colour one matrix); flip and cutout are always applied. ``num_ops`` = 0
    applies all. ``fill`` in [-1, 1] is the value outside the image.

    Raises ValueError naming the field, the value given and the range accepted.
    """

    flip: float = 0.0
    translate: float = 0.0
    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    posterize: int = 8
    solarize: float = 0.0
    cutout: float = 0.0
    num_ops: int = 0
    magnitude: float = 1.0
    fill: float = -1.0

    def __post_init__(self) -> None:
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            kind = "an integer" if name in _INTEGERS else "a number"
            accepted = int if name in _INTEGERS else (int, float)
            ok = isinstance(value, accepted) and not isinstance(value, bool)
            if not ok or not low <= value <= high:
                raise ValueError(
                    f"{name} ({meaning}) must be {kind} in [{low}, {high}], got {value!r}"
                )
        scale = self.scale
        valid = isinstance(scale, tuple) and len(scale) == 2 and all(_is_number(s) for s in scale)
        if not valid or not 0.05 <= scale[0] <= scale[1] <= 20.0:
            raise ValueError(
                f"scale must be (lowest, highest) with 0.05 <= lowest <= highest <= 20, got {scale!r}"
            )
        if self.num_ops > len(self.operations()):
            raise ValueError(
                f"num_ops is {self.num_ops}, but the spec sets a range for {len(self.operations())} operations "
                f"({', '.join(self.operations()) or 'none'}); lower num_ops or add one of: {', '.join(CHOOSABLE)}"
            )
        if self.magnitude != 1.0 and not self.operations():
            raise ValueError(
                f"magnitude is {self.magnitude}, but the spec has no operation for it to scale; "
                f"set one of: {', '.join(CHOOSABLE)}"
            )

    def operations(self, channels: int = 3) -> tuple[str, ...]:
        """Return the operations that `num_ops` chooses from for images with this many channels (1 or 3)."""
        plain = {f.name: f.default for f in fields(self)}
        return tuple(
            name
            for name in CHOOSABLE
            if getattr(self, name) != plain[name] and (channels == 3 or name not in COLOUR_ONLY)
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# `weak` and `strong` suit small grey glyphs, for which a flip would change the class. `flip-shift` and `rand-augment`
# are the weak and strong views of FixMatch (arXiv:2001.07685) for photographs, as far as one matrix can express them.
PRESETS: dict[str, ViewSpec] = {
    "none": ViewSpec(),
    "weak": ViewSpec(translate=0.05, rotate=12.0, scale=(0.85, 1.15), shear=11.0),
    "strong": ViewSpec(
        translate=0.1,
        rotate=25.0,
        scale=(0.75, 1.3),
        shear=20.0,
        brightness=0.3,
        contrast=0.3,
        cutout=0.3,
    ),
    "flip-shift": ViewSpec(flip=0.5, translate=0.125),
    "rand-augment": ViewSpec(
        flip=0.5,
        translate=0.3,
        rotate=30.0,
        scale=(0.8, 1.25),
        shear=17.0,
        brightness=0.9,
        contrast=0.9,
        saturation=0.9,
        hue=0.1,
        posterize=4,
        solarize=1.0,
        cutout=0.5,
        num_ops=2,
        fill=0.0,
    ),
}


def view_preset(name: str) -> ViewSpec:
    """Return the `ViewSpec` of a name in `PRESETS`; an unknown name raises ValueError, which lists the names."""
    if name not in PRESETS:
        raise ValueError(f"unknown view preset {name!r}; accepted: {', '.join(PRESETS)}")
    return PRESETS[name]
