"""Pixels of each of Pillow's modes, against Pillow's own conversion or values worked out by hand."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ptgm_fast import data
from ptgm_fast.data.pixels import to_bytes
from ptgm_fast.errors import UserError

GREY = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)
WIDE = np.random.default_rng(2).integers(0, 65536, (6, 5), dtype=np.uint16)
WIDE.flat[:2] = 0, 65535
SCALED = np.rint(WIDE / 257.0).astype(np.uint8)


def reopened(image: Image.Image, format: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer)


def read(image: Image.Image) -> np.ndarray:
    """As Pillow lays it out: [H, W] or [H, W, 3]."""
    pixels = to_bytes(image).permute(1, 2, 0).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def big_endian(values: np.ndarray) -> Image.Image:
    return Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "image",
    [
        reopened(Image.fromarray(WIDE), "PNG"),
        reopened(Image.fromarray(WIDE), "TIFF"),
        reopened(Image.fromarray(WIDE), "TIFF", compression="tiff_deflate"),
        reopened(big_endian(WIDE), "TIFF"),
        reopened(Image.fromarray(WIDE), "PPM"),
        Image.open(io.BytesIO(b"P5 5 6 65535\n" + WIDE.astype(">u2").tobytes())),
    ],
    ids=["png", "tiff-little", "tiff-deflate", "tiff-big", "pgm", "pgm-by-hand"],
)
def test_grey_of_16_bits_is_scaled(image: Image.Image) -> None:
    assert image.mode.startswith("I")
    assert np.array_equal(read(image), SCALED)


@pytest.mark.parametrize(("white", "width"), [(1, 1), (9, 1), (255, 1), (999, 2), (4095, 2)])
def test_pgm_is_scaled_by_its_own_maximum(white: int, width: int) -> None:
    values = np.linspace(0, white, 30).round().astype(int).reshape(6, 5)
    body = values.astype(f">u{width}").tobytes()
    image = Image.open(io.BytesIO(f"P5 5 6 {white}\n".encode() + body))
    expected = np.rint(255 * values / white)
    assert np.abs(read(image).astype(int) - expected).max() <= 1
    plain = " ".join(map(str, values.flat))
    image = Image.open(io.BytesIO(f"P2 5 6 {white}\n{plain}\n".encode()))
    assert np.abs(read(image).astype(int) - expected).max() <= 1


def test_tiff_where_white_is_zero() -> None:
    image = reopened(Image.fromarray(WIDE), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(read(image), np.rint(255 - WIDE / 257.0))


def test_tiff_of_12_bits() -> None:
    values = (WIDE[:4, :4] >> 4).astype(int)
    # Two samples in three bytes.
    body = b"".join(int(a << 12 | b).to_bytes(3) for a, b in values.reshape(-1, 2))
    tags = {256: 4, 257: 4, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 4, 279: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    image = Image.open(io.BytesIO(head + body))
    assert (len(head), image.mode) == (122, "I;16")
    assert np.array_equal(read(image), np.rint(values * (255 / 4095)))


def test_floats_in_the_unit_range_and_no_others() -> None:
    unit = (WIDE / 65535).astype(np.float32)
    assert np.array_equal(read(reopened(Image.fromarray(unit), "TIFF")), SCALED)
    for wrong in (255 * unit, -unit, np.full_like(unit, np.nan)):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            read(reopened(Image.fromarray(wrong), "TIFF"))


def test_integers_without_a_range_are_refused_by_name(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(WIDE.astype(np.int32)).save(tmp_path / name / "deep.tif")
    with pytest.raises(UserError, match=r"a/deep\.tif.*no known range"):
        data.load(f"folder:{tmp_path}")


def palette() -> Image.Image:
    return Image.fromarray(COLOUR).quantize(7)


def to_lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(Image.fromarray(COLOUR), *profiles, outputMode="LAB")


@pytest.mark.parametrize(
    ("make", "format"),
    [
        (lambda: Image.fromarray(GREY), "PNG"),
        (lambda: Image.fromarray(GREY > 99), "PNG"),
        (lambda: Image.fromarray(GREY > 99), "TIFF"),
        (lambda: Image.fromarray(GREY), "BMP"),
        (palette, "PNG"),
        (palette, "GIF"),
        (palette, "BMP"),
        (lambda: Image.fromarray(COLOUR), "WEBP"),
        (lambda: Image.fromarray(COLOUR), "JPEG"),
        (lambda: Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
        (lambda: Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
        (lambda: Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"),
    ],
)
def test_bytes_are_pillows_conversion(make: Callable[[], Image.Image], format: str) -> None:
    image, theirs = (reopened(make(), format) for _ in range(2))
    grey = theirs.mode in ("1", "L")
    assert np.array_equal(read(image), np.asarray(theirs.convert("L" if grey else "RGB")))


def test_hsv_and_lab() -> None:
    hsv = Image.fromarray(COLOUR).convert("HSV")
    assert np.array_equal(read(hsv), np.asarray(hsv.convert("RGB")))
    back = read(reopened(to_lab(), "TIFF")).astype(int)
    # LAB in bytes is coarser than sRGB.
    assert np.abs(back - COLOUR).mean() < 4


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    grey = mode[0] == "L"
    alpha = np.array([[0, 255, 128, 51, 204]] * 6, dtype=np.uint8)
    plain = GREY if grey else COLOUR
    image = Image.fromarray(np.dstack([plain, alpha]), "LA" if grey else "RGBA").convert(mode)
    share = alpha / 255.0 if grey else alpha[..., None] / 255.0
    source = np.asarray(image.convert("LA" if grey else "RGBA"))
    source = source[..., 0] if grey else source[..., :3]
    expected = source * share + 255 * (1 - share)
    assert np.abs(read(image) - expected).max() <= 1


def test_a_transparent_colour_lies_on_white() -> None:
    key = int(GREY[2, 2])
    expected = np.where(key == GREY, 255, GREY)
    assert np.array_equal(read(reopened(Image.fromarray(GREY), "PNG", transparency=key)), expected)
    colour = reopened(Image.fromarray(COLOUR), "PNG", transparency=tuple(COLOUR[1, 1].tolist()))
    expected = COLOUR.copy()
    expected[1, 1] = 255
    assert np.array_equal(read(colour), expected)
    image = palette()
    index = np.asarray(image)
    expected = np.asarray(image.convert("RGB")).copy()
    expected[index == 3] = 255
    for format in ("PNG", "GIF"):
        assert np.array_equal(read(reopened(image, format, transparency=3)), expected)
    wide = reopened(Image.fromarray(WIDE), "PNG", transparency=int(WIDE[3, 3]))
    assert np.array_equal(read(wide), np.where(WIDE[3, 3] == WIDE, 255, SCALED))
    with pytest.raises(ValueError, match="alpha channel"):
        read(reopened(Image.fromarray(GREY & 0xF0), "PNG", bits=4, transparency=3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("PNG", "I;16"), ("TIFF", "I;16")],
)
def test_orientation_is_applied(orientation: int, format: str, mode: str) -> None:
    upright: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }
    stored, expected = (COLOUR, COLOUR) if mode == "RGB" else (WIDE, SCALED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    image = reopened(Image.fromarray(stored), format, exif=exif, **options)
    assert np.array_equal(read(image), upright[orientation](expected))


@pytest.mark.parametrize(("format", "suffix"), [("GIF", "gif"), ("PNG", "png"), ("TIFF", "tif")])
def test_of_an_animation_the_first_frame_is_read_and_said(
    tmp_path: Path, format: str, suffix: str
) -> None:
    frames = [Image.fromarray(np.full((6, 5), value, np.uint8)) for value in (40, 200, 90)]
    for name in "ab":
        (tmp_path / name).mkdir()
        frames[0].save(
            tmp_path / name / f"0.{suffix}", format, save_all=True, append_images=frames[1:]
        )
    told: list[str] = []
    loaded = data.load(f"folder:{tmp_path}", channels=1, on_notice=told.append)
    assert (loaded.images == 40).all()
    assert len(told) == 1
    assert "2 animations (all frames but the first)" in told[0]
    with pytest.warns(UserWarning, match="2 animations"):
        data.load(f"folder:{tmp_path}", channels=1)


def test_torchvisions_folder_reads_the_same_pixels(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(WIDE).save(tmp_path / name / "0.png")
        Image.fromarray(np.dstack([GREY, GREY]), "LA").save(tmp_path / name / "1.png")
    ours, theirs = (
        data.load(uri) for uri in (f"folder:{tmp_path}", f"torchvision:ImageFolder?root={tmp_path}")
    )
    assert np.array_equal(ours.images[0, 0].numpy(), SCALED)
    assert ours.images.equal(theirs.images)
