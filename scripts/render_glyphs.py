#!/usr/bin/env python3
"""Render characters from Debian's free fonts: the letters of the bundled source pair, and the printed targets of the panel.

    python scripts/render_glyphs.py letters --packages scripts/letter_fonts.txt --out FOLDER
    python scripts/render_glyphs.py digits greek cyrillic kana --packages scripts/panel_fonts.txt --out FOLDER

Writes, for each set of characters, an .npz (x uint8 [N, 28, 28], white on black; y int64 [N]; class_names, the
characters), and fonts.csv with one line per font file: file, package, package version, licence, sha256, and for each set
whether it was used or why it was dropped. The packages are listed, with their licences, in `letter_fonts.txt` and `panel_fonts.txt`
beside this script; packages that are not installed are reported and left out. Needs Pillow and NumPy, and a Debian system (dpkg).

The same fonts with the same Pillow and FreeType give the same bytes: nothing is random, and files are
processed in sorted order. Each character is cropped to its ink, scaled to a box of 20x20 pixels (its longer side) and
centred, like MNIST's digits.

A font is dropped when it
  - cannot be opened, lacks a character, or draws many characters alike (a placeholder box, a dingbat);
  - is so pale or so full of ink that a character's form is lost at this size;
  - repeats a font that was already taken (almost the same pixels);
  - is illegible: fewer than `--legible` of its characters look most like the same character, upper or lower case,
    of *other* families (nearest neighbors in blurred pixels). Symbol, maze and many effect fonts go here.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import string
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

CHARACTERS = {
    "letters": string.ascii_uppercase + string.ascii_lowercase,
    "digits": string.digits,
    "greek": "αβγδεζηθικλμνξοπρστυφχψω",
    # The capitals that have no Latin twin.
    "cyrillic": "БГДЖЗИЛПФЦЧШЩЪЫЭЮЯ",
    "kana": "あいうえおかきくけこさしすせそなにぬねの",
}
FONT_PIXELS = 64
NEIGHBOURS = 5


@dataclass
class Font:
    """One font file on its way through the selection."""

    path: Path
    package: str
    version: str
    licence: str
    verdict: str = "used"
    images: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def family(self) -> str:
        """Weights and styles of a family share a file name prefix; a family is not used to judge its own legibility."""
        return f"{self.package}/{self.path.stem[:4].lower()}"


def read_packages(listing: Path) -> dict[str, str]:
    """Package names and licences of a listing: one "package<TAB>licence" per line, # starts a comment."""
    packages = {}
    for line in listing.read_text(encoding="utf-8").splitlines():
        name, _, licence = line.partition("#")[0].partition("\t")
        if name.strip():
            packages[name.strip()] = licence.strip()
    return packages


def find_fonts(packages: dict[str, str]) -> list[Font]:
    """The TrueType and OpenType files of the installed packages, sorted by package and path."""
    fonts = []
    for package, licence in sorted(packages.items()):
        query = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", package]
        status, _, version = subprocess.run(
            query, capture_output=True, text=True, check=False
        ).stdout.partition(" ")
        if status != "installed":
            print(f"package {package} is not installed: left out", file=sys.stderr)
            continue
        listed = subprocess.run(
            ["dpkg", "-L", package], capture_output=True, text=True, check=True
        ).stdout
        paths = (Path(line) for line in listed.splitlines())
        files = sorted(
            p
            for p in paths
            if p.suffix.lower() in (".ttf", ".otf", ".ttc") and p.is_file() and not p.is_symlink()
        )
        fonts += [Font(path, package, version, licence) for path in files]
    return fonts


def draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The character's ink, cropped; None when there is none or it leaves the canvas."""
    side = 5 * FONT_PIXELS
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((2 * FONT_PIXELS, 2 * FONT_PIXELS), character, font=font, fill=255)
    box = canvas.getbbox()
    if box is None or min(box[0], box[1]) == 0 or max(box[2], box[3]) == side:
        return None
    return canvas.crop(box)


def centre(ink: Image.Image, size: int, box: int) -> np.ndarray:
    """Scale the ink's longer side to `box` pixels and centre it on a size x size image."""
    scale = box / max(ink.size)
    width, height = (max(1, round(length * scale)) for length in ink.size)
    image = Image.new("L", (size, size))
    image.paste(
        ink.resize((width, height), Image.Resampling.BILINEAR),
        ((size - width) // 2, (size - height) // 2),
    )
    return np.asarray(image)


def render(font: Font, characters: str, size: int, box: int) -> None:
    """Fill `font.images`, uint8 [characters, size, size], or set `font.verdict` to the reason why it cannot be used."""
    try:
        face = ImageFont.truetype(font.path, FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)
        placeholder = draw(face, "\uffff")
        inks = [draw(face, character) for character in characters]
    except (OSError, ValueError):
        font.verdict = "unreadable"
        return
    drawn = [ink for ink in inks if ink is not None]
    boxed = placeholder is not None and any(
        ink.size == placeholder.size and ink.tobytes() == placeholder.tobytes() for ink in drawn
    )
    if len(drawn) < len(characters) or boxed:
        font.verdict = "lacks a character"
        return
    font.images = np.stack([centre(ink, size, box) for ink in drawn])
    flat = font.images.reshape(len(characters), -1)
    # A caseless font has 26 letters, a few of which coincide after scaling; with fewer than 24 it is not an alphabet.
    if len(np.unique(flat, axis=0)) < min(24, len(characters)):
        font.verdict = "draws characters alike"
    # Medians over characters: of the mean of the 20 brightest pixels, and of the inked share of the character's own box.
    elif np.median(np.sort(flat, axis=1)[:, -20:].mean(1)) < 110:
        font.verdict = "too pale"
    elif np.median([np.asarray(ink).mean() / 255 for ink in drawn]) > 0.6:
        font.verdict = "too full of ink"


def drop_duplicates(fonts: list[Font], distance: float) -> None:
    """Drop a font whose root mean square difference from an earlier one is below `distance` grey levels."""
    usable = [f for f in fonts if f.verdict == "used"]
    flat = np.stack([f.images.reshape(-1) for f in usable]).astype(np.float32) / 255
    squares = (flat * flat).sum(1)
    mean_square = (squares[:, None] + squares[None] - 2 * flat @ flat.T) / flat.shape[1]
    kept: list[int] = []
    for i, font in enumerate(usable):
        nearest = min(kept, key=lambda j: mean_square[i, j], default=None)
        if nearest is not None and mean_square[i, nearest] < (distance / 255) ** 2:
            font.verdict = f"repeats {usable[nearest].path.name}"
        else:
            kept.append(i)


def drop_illegible(fonts: list[Font], characters: str, share: float) -> None:
    """Drop a font if less than `share` of its characters are recognized by those of other families, ignoring case."""
    usable = [f for f in fonts if f.verdict == "used"]
    stack = np.stack([f.images for f in usable]).astype(np.float32) / 255
    count, number, size, _ = stack.shape
    # Half the resolution tolerates a displacement of one pixel.
    halved = (
        stack.reshape(count * number, size // 2, 2, size // 2, 2)
        .mean((2, 4))
        .reshape(count * number, -1)
    )
    squares = (halved * halved).sum(1)
    families = np.array([f.family for f in usable])
    folded = characters.casefold()
    caseless = np.array([folded.index(character) for character in folded])
    for i, font in enumerate(usable):
        own = halved[i * number : (i + 1) * number]
        distance = squares[None] - 2 * own @ halved.T
        distance[:, np.repeat(families == font.family, number)] = np.inf
        nearest = np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        votes = (caseless[nearest % number] == caseless[:, None]).sum(1)
        legible = float((votes > NEIGHBOURS // 2).mean())
        if legible < share:
            font.verdict = f"illegible ({legible:.2f} of its characters recognized)"


def write_manifest(fonts: list[Font], verdicts: dict[str, list[str]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "package", "version", "licence", "sha256", *verdicts])
        for font, *found in zip(fonts, *verdicts.values(), strict=True):
            digest = hashlib.sha256(font.path.read_bytes()).hexdigest()
            writer.writerow(
                [font.path.name, font.package, font.version, font.licence, digest, *found]
            )


def main() -> int:
    parser = argparse.ArgumentParser(description="Render characters from Debian's free fonts.")
    parser.add_argument("sets", nargs="+", choices=CHARACTERS)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--size", type=int, default=28, help="side of an image in pixels (even)")
    parser.add_argument("--box", type=int, default=20, help="longer side of a character in pixels")
    parser.add_argument(
        "--distance",
        type=float,
        default=14.0,
        help="RMS grey levels below which a font repeats another",
    )
    parser.add_argument(
        "--legible", type=float, default=0.4, help="share of characters that must be recognized"
    )
    arguments = parser.parse_args()

    packages = read_packages(arguments.packages)
    arguments.out.mkdir(parents=True, exist_ok=True)
    verdicts: dict[str, list[str]] = {}
    fonts: list[Font] = []
    for name in arguments.sets:
        characters = CHARACTERS[name]
        fonts = find_fonts(packages)
        for font in fonts:
            render(font, characters, arguments.size, arguments.box)
        if not any(f.verdict == "used" for f in fonts):
            print(
                f"no font for {name}: install the packages of {arguments.packages}", file=sys.stderr
            )
            return 2
        drop_duplicates(fonts, arguments.distance)
        drop_illegible(fonts, characters, arguments.legible)
        used = [f for f in fonts if f.verdict == "used"]
        verdicts[name] = [f.verdict for f in fonts]
        np.savez_compressed(
            arguments.out / f"{name}.npz",
            x=np.concatenate([f.images for f in used]),
            y=np.tile(np.arange(len(characters), dtype=np.int64), len(used)),
            class_names=np.array(list(characters)),
        )
        print(
            f"{name}: {len(used)} of {len(fonts)} fonts from {len({f.package for f in used})} packages, "
            f"{len(used) * len(characters)} images (Pillow {Image.__version__}, FreeType {features.version('freetype2')})"
        )
    write_manifest(fonts, verdicts, arguments.out / "fonts.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
