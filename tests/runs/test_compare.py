"""Comparisons: the same data, budget and start for every method; the report and its verdict."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ptgm_fast.config import RunConfig, with_method
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import DEFAULT_METHODS, Row, against_baselines, compare, verdict
from ptgm_fast.runs.report import write_report
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]


def test_report_and_picture(tiny: Tiny, tmp_path: Path) -> None:
    rows: list[Row] = []
    methods = [
        "scratch",
        "logit-matching",
        "soft-target",
        "pp",
        "pp+soft-target",
        "p-ssl",
        "pp+p-ssl",
        "pp+uda",
    ]
    report = compare(tiny(), methods, [4, 5], tmp_path / "c", on_row=rows.append)
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == report
    assert list(report["methods"]) == methods
    assert [(r.seed, r.method) for r in rows] == [(seed, m) for seed in (4, 5) for m in methods]
    for name, row in report["methods"].items():
        assert set(row) >= {"test_accuracy", "mean", "std", "ece", "seconds", "images_synthesised"}
        assert row["test_accuracy"] == [r.test_accuracy for r in rows if r.method == name]
        assert row["mean"] == pytest.approx(sum(row["test_accuracy"]) / 2)
    synthesised = {name: row["images_synthesised"] for name, row in report["methods"].items()}
    assert synthesised["scratch"] == synthesised["soft-target"] == 0
    assert synthesised["pp"] == synthesised["pp+soft-target"] == 12 * 16
    assert synthesised["p-ssl"] == 20 * 8
    assert synthesised["pp+p-ssl"] == 12 * 16 + 20 * 8
    assert (tmp_path / "c" / "compare.png").stat().st_size > 5000
    assert report["verdict"].startswith("Did the pseudo data help? PP ")


def test_a_row_is_what_train_gives(tiny: Tiny, tmp_path: Path) -> None:
    """Sharing pseudo pre-training between methods changes nothing."""
    report = compare(tiny(), ["pp", "pp+p-ssl", "scratch"], [3], tmp_path / "c")
    for method in ("scratch", "pp", "pp+p-ssl"):
        summary = train(with_method(tiny(seed=3), method), tmp_path / method)
        assert report["methods"][method]["test_accuracy"] == [summary["target"]["test_accuracy"]]
        assert report["methods"][method]["ece"] == summary["target"]["ece"]


def test_a_run_beside_its_baselines(tiny: Tiny, tmp_path: Path) -> None:
    """The rows are what compare gives for the same seed, and the run's own summary; a second time nothing is trained."""
    config, out = tiny(seed=3), tmp_path / "run"
    summary = train(config, out)
    rows: list[Row] = []
    report = against_baselines(config, out, on_row=rows.append)
    assert json.loads((out / "baselines" / "compare.json").read_text()) == report
    assert list(report["methods"]) == ["scratch", "soft-target", "this run"]
    alone = compare(config, ["scratch", "soft-target"], [3], tmp_path / "c")
    for method in ("scratch", "soft-target"):
        for what in ("test_accuracy", "val_accuracy", "ece", "images_synthesised"):
            assert report["methods"][method][what] == alone["methods"][method][what]
    run = report["methods"]["this run"]
    assert run["test_accuracy"] == [summary["target"]["test_accuracy"]]
    assert run["images_synthesised"] == 12 * 16 + 20 * 8
    gain = 100 * (run["mean"] - report["methods"]["scratch"]["mean"])
    assert f"This run: {gain:+.1f} points against scratch" in report["verdict"]
    assert [row.method for row in rows] == ["scratch", "soft-target"]
    assert against_baselines(config, out, on_row=rows.append) == report
    assert len(rows) == 2
    assert "this run" in write_report([out, out / "baselines"]).read_text()
    (out / "baselines" / "compare.json").write_text('{"methods": {"scratch": {"mean": 1}}}')
    with pytest.raises(UserError, match=r"compare\.json.*Field required.*Remove it"):
        against_baselines(config, out)


def test_unfinished_baselines_are_made_anew(tiny: Tiny, tmp_path: Path) -> None:
    config, out = tiny(seed=3), tmp_path / "run"
    train(config, out)
    asked = iter([False] * 25)
    with pytest.raises(Interrupted):
        against_baselines(config, out, context=Context(stop=lambda: next(asked, True)))
    assert not (out / "baselines" / "compare.json").exists()
    assert len((out / "baselines" / "metrics.jsonl").read_text().splitlines()) == 1
    report = against_baselines(config, out)
    assert list(report["methods"]) == ["scratch", "soft-target", "this run"]
    assert len((out / "baselines" / "metrics.jsonl").read_text().splitlines()) == 3


def fake(**accuracies: list[float]) -> dict[str, dict[str, list[float]]]:
    return {
        name.replace("_", "-").replace("pp-p-ssl", "pp+p-ssl"): {"test_accuracy": a}
        for name, a in accuracies.items()
    }


def test_verdict_says_helped_hurt_or_neither() -> None:
    assert "PP helped: +2.0" in verdict(fake(scratch=[0.90, 0.91, 0.92], pp=[0.92, 0.93, 0.94]))
    assert "P-SSL after PP hurt: -1.0" in verdict(
        fake(pp=[0.90, 0.91, 0.92], pp_p_ssl=[0.89, 0.90, 0.91])
    )
    assert "made no clear difference" in verdict(
        fake(scratch=[0.90, 0.91, 0.92], pp=[0.92, 0.89, 0.94])
    )
    assert "on one seed" in verdict(fake(scratch=[0.90], pp=[0.95]))
    assert "Add scratch and pp" in verdict(fake(scratch=[0.9]))


def test_wrong_input_leaves_no_folder(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        compare(tiny(), ["magic"], [0], tmp_path / "c")
    with pytest.raises(UserError, match="does not exist"):
        compare(tiny("data.images=npz:none.npz"), list(DEFAULT_METHODS), [0], tmp_path / "c")
    assert not (tmp_path / "c").exists()
