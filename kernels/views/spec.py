"""What a view may do to an image: ranges of random parameters, checked, and presets by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

# The operations that `num_ops` chooses among, in the order in which a view applies them.
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
# Grey images have no saturation and no hue: these leave them as they are and are never chosen for them.
COLOUR_ONLY = ("saturation", "hue")

# name: (lowest, highest, what it is), both ends accepted.
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

    Applied in this order (U is the uniform distribution, m the magnitude):

    ==============  =========================================================================================
    flip            horizontal flip with this probability
    translate       shift by U(-m t, m t) of the width and of the height, independently
    rotate          by U(-m r, m r) degrees about the centre, clockwise
    scale           (lo, hi): zoom by U(1 + m (lo - 1), 1 + m (hi - 1)); above 1 enlarges
    shear           horizontal, by U(-m s, m s) degrees
    brightness      u -> f u, f in U(max(0, 1 - m b), 1 + m b), u the pixel in [0, 1]
    contrast        u -> 1/2 + f (u - 1/2), f likewise; the pivot is mid-grey and not the image's mean, so that a
                    view needs one read of the image
    saturation      u -> grey + f (u - grey), f likewise, grey the BT.601 luma
    hue             rotation of the colour about the grey axis by U(-m h, m h) turns (equal to the shift of the HSV
                    hue at thirds of a turn, and linear between)
    posterize       keep U{b, ..., 8} bits, b this value moved towards 8 by m; 8 bits leave the value as it is
    solarize        invert u >= T, T in U(1 - m s, 1)
    cutout          a square of this fraction of the shorter side at a uniform centre, clipped at the border, gets
                    the fill value
    ==============  =========================================================================================

    After brightness, contrast, saturation and hue - one matrix product - values are clipped to [0, 1] once.
    ``num_ops`` = n > 0 applies to each sample n different operations drawn from those of translate ... solarize
    that the spec gives a range (as RandAugment, arXiv:1909.13719, but in the fixed order above, so that the
    geometry stays one resampling and the colour one matrix); flip and cutout always act. ``num_ops`` = 0 applies
    all. ``fill`` in [-1, 1] is read where an operation looks outside the image.

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
                f"num_ops is {self.num_ops}, but the spec gives a range to {len(self.operations())} operations "
                f"({', '.join(self.operations()) or 'none'}); lower num_ops or add one of: {', '.join(CHOOSABLE)}"
            )
        if self.magnitude != 1.0 and not self.operations():
            raise ValueError(
                f"magnitude is {self.magnitude}, but the spec has no operation that it scales; "
                f"set one of: {', '.join(CHOOSABLE)}"
            )

    def operations(self, channels: int = 3) -> tuple[str, ...]:
        """The operations that `num_ops` chooses among for images of this many channels (1 or 3)."""
        plain = {f.name: f.default for f in fields(self)}
        return tuple(
            name
            for name in CHOOSABLE
            if getattr(self, name) != plain[name] and (channels == 3 or name not in COLOUR_ONLY)
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# `weak` and `strong` suit small grey glyphs, for which a flip would change the class. `flip-shift` and `rand-augment`
# are the weak and strong views of FixMatch (arXiv:2001.07685) for photographs, as far as one matrix expresses them.
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
    """The `ViewSpec` of a name in `PRESETS`; raises ValueError with the names there are."""
    if name not in PRESETS:
        raise ValueError(f"unknown view preset {name!r}; accepted: {', '.join(PRESETS)}")
    return PRESETS[name]
