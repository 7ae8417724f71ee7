"""Image files as uint8: one table says what each of Pillow's modes becomes; no pixel is silently clipped or dropped."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Modes with 8 bits per channel, and 1-bit images -> grey or colour. Pillow's own conversion is exact for all but LAB.
_BYTES = {
    **dict.fromkeys(("1", "L", "LA", "La"), "L"),
    **dict.fromkeys(
        ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"), "RGB"
    ),
}
# Wider modes, all grey: Pillow's conversion to bytes would clip them at 255.
_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_TIFF_PHOTOMETRIC, _TIFF_BITS, _WHITE_IS_ZERO = 262, 258, 0


def read_image(
    file: Path | str, on_frames: Callable[[], None] = lambda: None, *, data: bytes | None = None
) -> Tensor:
    """Read one image file with `to_bytes`; uint8 [1, C, H, W].

    data: the file's content if it is stored inside another file, and `file` is only its name. on_frames: called for an
    animated or multi-page file, of which only the first frame is read. Raises UserError, naming the file and the reason,
    for a damaged file or pixels without a known range.
    """
    from PIL import Image

    try:
        with Image.open(file if data is None else io.BytesIO(data)) as opened:
            frames = getattr(opened, "n_frames", 1)
            pixels = to_bytes(opened)
    except Exception as error:  # Pillow's decoders raise many unrelated types for damaged files
        raise UserError(
            f"image {str(file)!r} cannot be read ({error or type(error).__name__}); replace or remove it"
        ) from error
    if frames > 1:
        on_frames()
    return pixels[None]


def to_bytes(image: Image) -> Tensor:
    """Convert an opened Pillow image to uint8 [C, H, W]: C = 1 for grey modes and 3 for the others.

    16-bit grey is scaled by its range, floats by 255; transparent pixels are composited onto white; the EXIF orientation
    is applied; CMYK, YCbCr, HSV, LAB and palettes become RGB. Raises ValueError for floats outside [0, 1], for 32-bit
    integers, which have no known range, and for unknown modes.
    """
    from PIL import ImageOps

    # Pillow leaves a transparent colour in the units of the file when it scales the pixels to 8 bits.
    tiles = getattr(image, "tile", None)
    if image.mode in ("L", "RGB") and tiles and "transparency" in image.info:
        args = tiles[0].args
        if (args if isinstance(args, str) else args[0]) != image.mode:
            raise ValueError(
                "its transparent colour does not have 8 bits; save it with an alpha channel"
            )
    image.load()
    upright = ImageOps.exif_transpose(image)
    pixels = _wide(upright, image) if image.mode in _WIDE else _eight_bits(upright)
    array = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _eight_bits(image: Image) -> np.ndarray:
    from PIL import Image

    mode = _BYTES.get(image.mode)
    if mode is None:
        raise ValueError(f"pixel mode {image.mode!r} is not supported; save it as PNG")
    if image.mode == "LAB":
        return np.array(_from_lab(image))
    if not image.has_transparency_data:
        return np.array(image.convert(mode))
    with_alpha = image.convert(f"{mode}A")
    canvas = Image.new(mode, image.size, "white")
    canvas.paste(with_alpha.convert(mode), mask=with_alpha.getchannel("A"))
    return np.array(canvas)


def _from_lab(image: Image) -> Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert converted is not None
    return converted


def _wide(image: Image, original: Image) -> np.ndarray:
    """`image` is `original` after the EXIF rotation; only `original` has the file's format and tags."""
    tags = getattr(original, "tag_v2", None)
    if image.mode == "F":
        white = 1
    elif image.mode == "I" and original.format not in ("PPM", "PNG"):
        raise ValueError("32-bit or signed integers have no known range; save it in 8 or 16 bits")
    else:
        # A 12-bit TIFF opens as 16 bits.
        white = 2 ** (tags[_TIFF_BITS][0] if tags else 16) - 1
    values = np.array(image).astype(np.float64)
    unit = values / white
    # NaN compares false.
    if not ((unit >= 0) & (unit <= 1)).all():
        raise ValueError("its pixels are not all in [0, 1]; rescale them, or save 8 or 16 bits")
    if tags and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        # Pillow inverts these in 8 bits only.
        unit = 1 - unit
    if "transparency" in image.info:
        unit[values == image.info["transparency"]] = 1
    return np.rint(255 * unit).astype(np.uint8)
