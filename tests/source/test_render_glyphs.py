"""The parts of what renders characters, on fonts that come with matplotlib."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "render_glyphs.py"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_glyphs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["render_glyphs"] = module
    spec.loader.exec_module(module)
    return module


def rendered(script: ModuleType, name: str, package: str = "p", characters: str = "letters"):  # type: ignore[no-untyped-def]  # the script's own class
    font = script.Font(FONTS / name, package, "1", "free")
    script.render(font, script.CHARACTERS[characters], 28, 20)
    return font


def test_letters_are_centred_in_their_box(script: ModuleType) -> None:
    font = rendered(script, "DejaVuSans.ttf")
    assert font.verdict == "used"
    assert font.images.shape == (52, 28, 28)
    for letter in font.images:
        rows, columns = np.flatnonzero(letter.max(1)), np.flatnonzero(letter.max(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        assert abs(rows[0] - (27 - rows[-1])) <= 1
        assert abs(columns[0] - (27 - columns[-1])) <= 1
    again = rendered(script, "DejaVuSans.ttf")
    assert np.array_equal(font.images, again.images)


def test_fonts_without_letters_are_dropped(script: ModuleType, tmp_path: Path) -> None:
    assert rendered(script, "STIXSizOneSymReg.ttf").verdict == "lacks a character"
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    font = script.Font(broken, "p", "1", "free")
    script.render(font, script.CHARACTERS["letters"], 28, 20)
    assert font.verdict == "unreadable"


def test_a_repeated_font_is_dropped_once(script: ModuleType) -> None:
    fonts = [
        rendered(script, "DejaVuSans.ttf"),
        rendered(script, "DejaVuSerif.ttf"),
        rendered(script, "DejaVuSans.ttf", "q"),
    ]
    script.drop_duplicates(fonts, 14.0)
    assert [font.verdict for font in fonts] == ["used", "used", "repeats DejaVuSans.ttf"]


def test_a_scrambled_alphabet_is_illegible(script: ModuleType) -> None:
    names = [
        "DejaVuSans.ttf",
        "DejaVuSerif.ttf",
        "STIXGeneral.ttf",
        "cmr10.ttf",
        "cmss10.ttf",
        "DejaVuSansMono.ttf",
    ]
    fonts = [rendered(script, name, package=str(i)) for i, name in enumerate(names)]
    fonts.append(rendered(script, "DejaVuSans-Bold.ttf", package="scrambled"))
    fonts[-1].images = fonts[-1].images[::-1]
    script.drop_illegible(fonts, script.CHARACTERS["letters"], 0.45)
    assert [font.verdict for font in fonts[:-1]] == ["used"] * len(names)
    assert fonts[-1].verdict.startswith("illegible")


@pytest.mark.parametrize(("characters", "number"), [("digits", 10), ("greek", 24)])
def test_other_characters_are_drawn_too(script: ModuleType, characters: str, number: int) -> None:
    font = rendered(script, "DejaVuSans.ttf", characters=characters)
    assert font.verdict == "used"
    assert len(np.unique(font.images.reshape(number, -1), axis=0)) == number
    assert rendered(script, "DejaVuSans.ttf", characters="kana").verdict == "lacks a character"


# The beginnings of the licences that the bundled data may be drawn under; of several, one's own choice.
FREE = ("OFL", "Apache", "MIT", "BSD", "Expat", "bitstream-vera", "public-domain")


@pytest.mark.parametrize("listing", ["letter_fonts.txt", "panel_fonts.txt"])
def test_every_package_of_a_listing_has_a_free_licence(script: ModuleType, listing: str) -> None:
    packages = script.read_packages(SCRIPT.with_name(listing))
    assert len(packages) > 60
    for licence in packages.values():
        assert any(choice.startswith(FREE) for choice in licence.split(" or "))
        assert "GPL" not in licence.split(" or ")[0]


def test_no_package_draws_both_the_source_and_a_target(script: ModuleType) -> None:
    letters, panel = (
        script.read_packages(SCRIPT.with_name(f"{which}_fonts.txt"))
        for which in ("letter", "panel")
    )
    assert not letters.keys() & panel.keys()
