"""A figure drawn once and saved twice: as a PNG, and as an SVG with the page's colors."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from ptgm_fast.runs import figures
from ptgm_fast.runs.artifacts import Method
from ptgm_fast.runs.plots import FAINT, INK, SERIES, VARIABLES, save, to_svg

REPORT = Path(__file__).resolve().parents[2] / "docs/results/compare-letters-digits.json"


def methods() -> dict[str, Method]:
    return {name: Method(**row) for name, row in json.loads(REPORT.read_text())["methods"].items()}


def test_the_colors_are_the_stylesheets_light_ones() -> None:
    style = files("ptgm_fast").joinpath("assets/report/style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--([\w-]+): (#\w+);", style.split("@media")[0]))
    assert (light["ink"], light["faint"]) == (INK, FAINT)
    assert list(SERIES) == [light[f"series-{number}"] for number in range(1, 11)]


def test_both_ways_out_show_the_same_figure(tmp_path: Path) -> None:
    figure = figures.comparison(methods(), "letters <and> digits")
    svg = to_svg(figure)
    assert svg.startswith("<svg")
    assert 'aria-label="Test accuracy of 8 methods over 5 seeds"' in svg
    assert "letters &lt;and&gt; digits" in svg
    assert "var(--series-1)" in svg
    assert not [color for color in VARIABLES if color in svg]
    save(figure, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[0, 0] == 255).all()
    for color in SERIES[:2]:
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(-1).sum() > 100
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


def test_an_axis_that_starts_above_zero_says_so() -> None:
    axis = figures.comparison(methods()).axes[0]
    start = axis.get_xlim()[0]
    assert 0 < start < 100 * min(min(method.test_accuracy) for method in methods().values())
    assert axis.get_xlabel().endswith(f"(axis starts at {start:.0f})")


def test_curves_leave_out_a_term_that_is_the_whole_loss() -> None:
    record = {"stage": "a", "step": 1, "lr": 0.1, "loss": 2.0, "cross_entropy": 2.0}
    both = [record, {**record, "stage": "b", "distillation": 1.0, "validation_accuracy": 0.5}]
    upper_a, upper_b, _, lower_b = figures.curves(both, ("a", "b")).axes
    assert [line.get_label() for line in upper_a.lines] == ["loss"]
    assert [line.get_label() for line in upper_b.lines] == ["loss", "cross entropy", "distillation"]
    assert [line.get_label() for line in lower_b.lines] == ["validation accuracy"]
    assert lower_b.get_xlabel() == "step of b"


def test_curves_leave_out_a_mask_rate_that_is_always_one() -> None:
    def labels(*rates: float) -> list[str]:
        metrics = [
            {"stage": "a", "step": step, "loss": 1.0, "agreement": 0.5, "mask_rate": rate}
            for step, rate in enumerate(rates, 1)
        ]
        return [
            str(line.get_label())
            for axis in figures.curves(metrics, ["a"]).axes
            for line in axis.lines
        ]

    assert labels(1.0, 1.0) == ["loss", "agreement"]
    assert labels(1.0, 0.9) == ["loss", "agreement", "mask rate"]
