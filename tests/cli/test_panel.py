"""`ptgm-fast compare --panel`: two targets, few steps; its numbers are those of the comparisons it runs."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from ptgm_fast.config import load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs import panel
from ptgm_fast.runs.compare import Asked, Row, compare
from ptgm_fast.runs.gains import gain
from ptgm_fast.runs.panel import (
    GAINS,
    LABELS_PER_CLASS,
    MEASURED,
    PANEL_METHODS,
    TARGETS,
    PanelRecord,
    PanelTarget,
    beside_the_panel,
    cheapest,
    compare_panel,
    read_panel,
    settings_of,
)
from ptgm_fast.runs.panel_figure import panel_figure, spread_out
from ptgm_fast.training.context import Context, Interrupted

Run = Callable[..., tuple[int, str, str]]
FEW = {
    "kana": PanelTarget("kana", "panel:kana", 4, 6),
    "digits": PanelTarget("printed digits", "panel:digits", 4, 8),
}


@pytest.fixture
def panel_toml(pair: Path, tmp_path: Path) -> Path:
    path = tmp_path / "panel.toml"
    path.write_text(
        f"""
[source]
generator = "{pair}"
optimize = false
[synthesis]
images = "fresh"
[target]
network = "ptgm:cnn-small"
[pp]
steps = 3
batch_size = 16
[training]
steps = 4
batch_size = 8
validate_every = 2
[p_ssl]
batch_size = 8
"""
    )
    return path


def test_the_whole_panel_stopped_and_gone_on_with(
    cli: Run, panel_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel, "TARGETS", FEW)
    out, asked = tmp_path / "p", Asked(PANEL_METHODS, (4, 5))
    config, rows = load_config(panel_toml), list[Row]()
    stopped = Context(stop=lambda: len(rows) == 16)
    with pytest.raises(Interrupted):
        compare_panel(config, asked, out, context=stopped, on_row=rows.append)
    assert not (out / "panel.json").exists()
    code, said, err = cli("compare", "--panel", "--resume", "--out", out)
    assert (code, err) == (0, "")
    # One target was finished, and two rows of the other.
    assert len([line for line in said.splitlines() if line.startswith("seed ")]) == 28 - 16
    record = read_panel(out / "panel.json")
    assert (out / "panel.png").stat().st_size > 5000
    assert record.command == "ptgm-fast compare --panel config.toml --seeds 4,5,"
    assert record.seeds == (4, 5)
    for name, target in record.targets.items():
        report = json.loads((out / name / "compare.json").read_text())
        assert target.distance == report["distance"]
        assert f"{target.distance:.3f}" in said
        assert list(target.methods) == list(report["methods"]) == list(PANEL_METHODS)
        accuracies = {m: np.array(row["test_accuracy"]) for m, row in report["methods"].items()}
        for method, row in target.methods.items():
            assert list(row.test_accuracy) == accuracies[method].tolist()
            assert f"{100 * row.mean:.1f}±{100 * row.std:.1f}" in said
        for what, (with_it, without) in GAINS.items():
            points = 100 * (accuracies[with_it] - accuracies[without])
            found = target.gains[what]
            assert found.mean == pytest.approx(points.mean())
            assert found.error == pytest.approx(points.std(ddof=1) / math.sqrt(2))
            assert str(found) in said
        assert target.verdict in " ".join(said.split())
    near = [target.distance for target in record.targets.values()]
    assert near == sorted(near)
    assert all(len(line) <= 80 for line in said.splitlines() if "pp+" in line and "±" in line)
    # The interrupted target has the results of an uninterrupted comparison, and of one without the other target.
    alone = load_config(out / "digits" / "config.toml")
    assert (alone.task, alone.data.images) == ("panel-digits", "panel:digits")
    assert alone.data.labels_per_class == LABELS_PER_CLASS
    whole = compare(alone, asked, tmp_path / "whole")
    for method, row in record.targets["digits"].methods.items():
        assert list(row.test_accuracy) == whole["methods"][method]["test_accuracy"]
    # Once it is finished nothing is trained again, and a panel started with other settings is not mixed in.
    code, again, err = cli("compare", "--resume", "--out", out)
    assert (code, err) == (0, "")
    assert "seed 4" not in again
    assert read_panel(out / "panel.json") == record
    path = out / "kana" / "config.toml"
    path.write_text(path.read_text().replace("test_per_class = 6", "test_per_class = 7"))
    code, _, err = cli("compare", "--resume", "--out", out)
    assert code == 2
    assert "started with other settings" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CONFIG", "--methods", "pp"], "fixed methods"),
        (["CONFIG", "--networks", "ptgm:cnn-small"], "leave out --networks"),
        (["CONFIG", "--set", "data.labels_per_class=5"], "data.labels_per_class = 5"),
        (["CONFIG", "--set", "data.images=npz:a.npz"], "data.images = 'npz:a.npz'"),
        (["CONFIG", "--set", "data.unlabelled=rest"], "data.unlabelled = 'rest'"),
        (["--resume", "--out", "one"], "leave out --panel"),
        (["--resume", "--out", "none"], "no run to resume"),
    ],
)
def test_nonsense_is_refused(
    cli: Run, panel_toml: Path, tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.toml").touch()
    before = {"methods": ["pp"], "seeds": [0], "networks": [], "share_pool": False}
    (tmp_path / "one" / "asked.json").write_text(json.dumps(before))
    given = [str(panel_toml) if word == "CONFIG" else word for word in arguments]
    code, out, err = cli("compare", "--panel", *given)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs" / "panel-compare").exists()


def test_every_target_leaves_images_for_the_reference_row() -> None:
    counts = {}
    for name, target in TARGETS.items():
        if target.images.startswith("panel:"):
            with np.load(panel.PANEL / f"{name}.npz") as archive:
                counts[name] = np.bincount(archive["y"]).min()
    counts |= {"handwritten": 500, "uci": 174}
    assert counts.keys() == TARGETS.keys()
    for name, target in TARGETS.items():
        used = LABELS_PER_CLASS + target.validation_per_class + target.test_per_class
        assert counts[name] - used >= 20


def methods(**gains: float) -> dict[str, dict[str, Any]]:
    """Rows with the given gains over scratch in points, on five seeds, with half a point of noise."""
    rng = np.random.default_rng(2)
    names = {name.replace("_", "+").replace("9", "-"): value for name, value in gains.items()}
    return {
        name: {"test_accuracy": (0.8 + value / 100 + rng.normal(0, 0.002, 5)).tolist()}
        for name, value in (dict.fromkeys(PANEL_METHODS, 0.0) | names).items()
    }


def test_the_cheapest_is_the_first_that_none_is_clearly_above() -> None:
    assert cheapest(methods()) == "scratch"
    assert cheapest(methods(soft9target=2)) == "soft-target"
    assert cheapest(methods(pp=2, pp_p9ssl=2)) == "pp"
    rows = methods(pp_soft9target=3, pp_p9ssl=3)
    assert cheapest(rows) == "pp+soft-target"
    assert cheapest(methods(pp_soft9target=3, pp_p9ssl=5)) == "pp+p-ssl"
    # The reference does not compete.
    assert cheapest(methods(pp_p9ssl_real=9)) == "scratch"
    one = {name: {"test_accuracy": row["test_accuracy"][:1]} for name, row in rows.items()}
    assert cheapest(one) is None
    assert settings_of("pp+soft-target") == 'stages = ["pp", "supervised"], supervised.distillation = "soft-target"'  # fmt: skip
    assert settings_of("pp+p-ssl") == 'stages = ["pp", "p-ssl"]'
    said = panel._verdict(gain(rows, *GAINS["P-SSL"]), "pp+soft-target")
    assert "made no clear difference" in said
    assert 'The cheaper run, which none is clearly above: pp+soft-target (stages = ["pp", "supervised"]' in said  # fmt: skip


DISTANCES = (0.218, 0.24, 0.243, 0.257, 0.277, 0.376)


@pytest.fixture
def measured() -> PanelRecord:
    """A record of all targets, with the distances of the bundled pair; its gains are made up."""
    reports = {}
    for distance, name in zip(DISTANCES, TARGETS, strict=True):
        rows = methods(pp=3, pp_soft9target=3, pp_p9ssl=3 + 10 * distance)
        more = {"val_accuracy": [0.5] * 5, "mean": 0.5, "std": 0.1, "seconds": 1.0}
        found = {method: {**row, **more} for method, row in rows.items()}
        reports[name] = {"methods": found, "distance": distance, "device": "cpu", "versions": {}}
    asked = Asked(PANEL_METHODS, tuple(range(5)))
    return panel._record(load_config(), asked, reports)


def test_where_a_target_lies(measured: PanelRecord, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    alone = beside_the_panel(0.25, path)
    assert len(alone) == 1
    assert alone[0].startswith("distance from the source: 0.250 ")
    path.write_text(json.dumps(measured.model_dump(mode="json")))
    where, added = beside_the_panel(0.249, path)
    assert where.startswith(alone[0].replace("0.250", "0.249"))
    assert "printed digits 0.218, Greek 0.240, Cyrillic 0.243" in where
    gains = [f"{measured.targets[name].gains['P-SSL']} on {TARGETS[name].title}" for name in ("cyrillic", "handwritten")]  # fmt: skip
    assert f"in points: {', '.join(gains)}. " in added
    assert "Measured with the bundled pair" in added
    assert "5 seeds" in added
    path.write_text("{}")
    with pytest.raises(UserError, match="compare --panel"):
        beside_the_panel(0.25, path)


def test_what_was_measured_is_of_the_targets_that_are_there(measured: PanelRecord) -> None:
    record = read_panel(MEASURED) if MEASURED.is_file() else measured
    assert record.targets.keys() == TARGETS.keys()
    assert record.labels_per_class == LABELS_PER_CLASS


def test_the_pictures_names_do_not_collide(measured: PanelRecord) -> None:
    figure = panel_figure(measured)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    # Without the leader lines.
    names = [Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    assert len(names) == len(TARGETS)
    for i, box in enumerate(names):
        assert not any(box.overlaps(other) for other in names[i + 1 :])
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert [line.get_ydata()[0] for axis in figure.axes for line in axis.lines[:1]] == [0, 0, 0]
    one = {**measured.targets}
    record = measured.model_copy(update={"targets": {"kana": one["kana"]}, "seeds": (0,)})
    assert "one seed" in panel_figure(record).get_suptitle()


def test_places_are_moved_no_further_than_it_takes() -> None:
    assert spread_out([0.1, 0.5, 0.9], 0.3) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_out([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread_out([0.4, 0.5, 0.9], 0.3) == pytest.approx([0.3, 0.6, 0.9])
    found = spread_out([0.1, 0.11, 0.12, 0.2, 0.9], 0.15)
    assert min(np.diff(found)) >= 0.15 - 1e-9
    assert found[-1] == 0.9


@pytest.fixture
def write_panel() -> Any:
    path = Path(__file__).resolve().parents[2] / "scripts" / "write_panel.py"
    spec = importlib.util.spec_from_file_location("write_panel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_record(measured: PanelRecord, write_panel: Any) -> None:
    """No measured table was edited by hand."""
    page = (write_panel.DOCS / "panel.md").read_text(encoding="utf-8")
    if MEASURED.is_file():
        assert write_panel.page(page, read_panel(MEASURED)) == page, (
            "run python scripts/write_panel.py"
        )
    written = write_panel.page(page, measured)
    assert write_panel.page(written, measured) == written
    assert written.split(write_panel.BEGIN)[0] == page.split(write_panel.BEGIN)[0]
    assert written.split(write_panel.END)[1] == page.split(write_panel.END)[1]
    lines = [line for line in written.splitlines() if line.startswith("| kana | 0.277")]
    scratch = measured.targets["kana"].methods["scratch"]
    assert f"| {100 * scratch.mean:.1f} ± {100 * scratch.std:.1f} |" in lines[0]
    assert lines[1].split(" | ")[2:] == [
        *(str(found) for found in list(measured.targets["kana"].gains.values())[:-1]),
        f"{measured.targets['kana'].gains['P-SSL with real images']} |",
    ]
