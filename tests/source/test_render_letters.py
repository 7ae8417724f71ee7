"""The letter renderer's parts, on fonts that come with matplotlib."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "render_letters.py"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_letters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["render_letters"] = module
    spec.loader.exec_module(module)
    return module


def rendered(script: ModuleType, name: str, package: str = "p"):  # type: ignore[no-untyped-def]  # the script's own class
    font = script.Font(FONTS / name, package, "1", "free")
    script.render(font, 28, 20)
    return font


def test_letters_are_centred_in_their_box(script: ModuleType) -> None:
    font = rendered(script, "DejaVuSans.ttf")
    assert font.verdict == "used"
    assert font.letters.shape == (52, 28, 28)
    for letter in font.letters:
        rows, columns = np.flatnonzero(letter.max(1)), np.flatnonzero(letter.max(0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
        assert abs(rows[0] - (27 - rows[-1])) <= 1
        assert abs(columns[0] - (27 - columns[-1])) <= 1
    again = rendered(script, "DejaVuSans.ttf")
    assert np.array_equal(font.letters, again.letters)


def test_fonts_without_letters_are_dropped(script: ModuleType, tmp_path: Path) -> None:
    assert rendered(script, "STIXSizOneSymReg.ttf").verdict == "lacks a letter"
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    font = script.Font(broken, "p", "1", "free")
    script.render(font, 28, 20)
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
    fonts[-1].letters = fonts[-1].letters[::-1]
    script.drop_illegible(fonts, 0.45)
    assert [font.verdict for font in fonts[:-1]] == ["used"] * len(names)
    assert fonts[-1].verdict.startswith("illegible")


def test_the_listing_names_a_licence_for_each_package(script: ModuleType) -> None:
    packages = script.read_packages(SCRIPT.with_name("letter_fonts.txt"))
    assert len(packages) > 100
    assert all(packages.values())
