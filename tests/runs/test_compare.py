"""Comparisons: the same data, budget and initial weights for every method; the report and its verdict."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptgm_fast.config import RunConfig, with_method
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import (
    DEFAULT_METHODS,
    Asked,
    Row,
    against_baselines,
    asked_of,
    compare,
)
from ptgm_fast.runs.folder import ASKED
from ptgm_fast.runs.gains import verdict
from ptgm_fast.runs.report import write_report
from ptgm_fast.runs.train import train
from ptgm_fast.runs.worth import gains_of, validated
from ptgm_fast.sampling import Recipe, open_pool
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
    report = compare(tiny(), Asked(tuple(methods), (4, 5)), tmp_path / "c", on_row=rows.append)
    assert json.loads((tmp_path / "c" / "compare.json").read_text()) == report
    assert list(report["methods"]) == methods
    assert [(r.seed, r.method) for r in rows] == [(seed, m) for seed in (4, 5) for m in methods]
    for name, row in report["methods"].items():
        assert set(row) >= {"test_accuracy", "mean", "std", "ece", "seconds", "images_synthesized"}
        assert row["test_accuracy"] == [r.test_accuracy for r in rows if r.method == name]
        assert row["mean"] == pytest.approx(sum(row["test_accuracy"]) / 2)
    synthesized = {name: row["images_synthesized"] for name, row in report["methods"].items()}
    assert synthesized["scratch"] == synthesized["soft-target"] == 0
    assert synthesized["pp"] == synthesized["pp+soft-target"] == 12 * 16
    assert synthesized["p-ssl"] == 20 * 8
    assert synthesized["pp+p-ssl"] == 12 * 16 + 20 * 8
    assert (tmp_path / "c" / "compare.png").stat().st_size > 5000
    assert report["verdict"].startswith("Did the pseudo data help? PP ")


def test_a_row_is_what_train_gives(tiny: Tiny, tmp_path: Path) -> None:
    """Sharing pseudo pre-training between methods changes nothing."""
    report = compare(tiny(), Asked(("pp", "pp+p-ssl", "scratch"), (3,)), tmp_path / "c")
    for method in ("scratch", "pp", "pp+p-ssl"):
        summary = train(with_method(tiny(seed=3), method), tmp_path / method)
        assert report["methods"][method]["test_accuracy"] == [summary["target"]["test_accuracy"]]
        assert report["methods"][method]["ece"] == summary["target"]["ece"]


def test_a_run_beside_its_baselines(tiny: Tiny, tmp_path: Path) -> None:
    """The rows match compare's for the same seed, and the run's own summary; the second time, nothing is trained."""
    config, out = tiny(seed=3), tmp_path / "run"
    summary = train(config, out)
    rows: list[Row] = []
    report = against_baselines(config, out, on_row=rows.append)
    assert json.loads((out / "baselines" / "compare.json").read_text()) == report
    assert list(report["methods"]) == ["scratch", "soft-target", "this run"]
    alone = compare(config, Asked(("scratch", "soft-target"), (3,)), tmp_path / "c")
    for method in ("scratch", "soft-target"):
        for what in ("test_accuracy", "val_accuracy", "ece", "images_synthesized"):
            assert report["methods"][method][what] == alone["methods"][method][what]
    run = report["methods"]["this run"]
    assert run["test_accuracy"] == [summary["target"]["test_accuracy"]]
    assert run["images_synthesized"] == 12 * 16 + 20 * 8
    gain = 100 * (run["mean"] - report["methods"]["scratch"]["mean"])
    took = run["seconds"] - report["methods"]["scratch"]["seconds"]
    assert took > 0
    rate = f", {60 * gain / took:+.1f} points a minute" if gain > 0 else ""
    assert (
        f"This run: {gain:+.1f} points against scratch for {took:.1f} s more{rate}; "
        in report["verdict"]
    )
    assert gains_of(out)[-1] == report["verdict"]
    stage = summary["stages"]["p-ssl"]
    assert gains_of(out)[0].startswith("p-ssl: validation accuracy ")
    assert gains_of(out)[0].endswith(f"the stage took {stage['seconds'] / 60:.1f} min")
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


def fake(**accuracies: list[float]) -> dict[str, dict[str, Any]]:
    """Methods that each take half a minute more than the previous one."""
    return {
        name.replace("_", "-").replace("pp-p-ssl", "pp+p-ssl"): {
            "test_accuracy": a,
            "seconds": 30.0 * (number + 1),
        }
        for number, (name, a) in enumerate(accuracies.items())
    }


def test_verdict_says_helped_hurt_or_neither() -> None:
    said = verdict(fake(scratch=[0.90, 0.91, 0.92], pp=[0.92, 0.93, 0.94]))
    assert (
        "PP helped: +2.0 points (pp against scratch) for 30.0 s more, +4.0 points a minute." in said
    )
    said = verdict(fake(pp=[0.90, 0.91, 0.92], pp_p_ssl=[0.89, 0.90, 0.91]))
    assert "P-SSL after PP hurt: -1.0" in said
    # What was lost has no rate.
    assert said.endswith("for 30.0 s more.")
    # If distillation alone has the same gain, the gain is not due to P-SSL.
    rows = fake(pp=[0.90, 0.91, 0.92], pp_p_ssl=[0.92, 0.93, 0.94])
    rows["pp+soft-target"] = {"test_accuracy": [0.92, 0.94, 0.93], "seconds": 50.0}
    said = verdict(rows)
    assert "P-SSL after PP helped: +2.0" in said
    assert (
        "P-SSL after PP, beyond distillation, made no clear difference: +0.0 points (pp+p-ssl against pp+soft-target)"
        in said
    )
    # A gain within the noise is not divided by minutes; nor is that of a method that takes less time.
    said = verdict(fake(scratch=[0.90, 0.91, 0.92], pp=[0.92, 0.89, 0.94]))
    assert "made no clear difference" in said
    assert said.endswith("(pp against scratch) for 30.0 s more.")
    said = verdict(fake(pp=[0.92, 0.93, 0.94], scratch=[0.90, 0.91, 0.92]))
    assert said.endswith("(pp against scratch) in 30.0 s less.")
    assert "on one seed" in verdict(fake(scratch=[0.90], pp=[0.95]))
    assert "Add scratch and pp" in verdict(fake(scratch=[0.9]))


def test_a_stage_is_shown_by_its_first_and_its_best_validation() -> None:
    metrics = [
        {"stage": "pp", "step": 20, "loss": 1.0},
        {"stage": "p-ssl", "step": 50, "validation_accuracy": 0.9},
        {"stage": "p-ssl", "step": 100, "validation_accuracy": 0.95},
        {"stage": "p-ssl", "step": 150, "validation_accuracy": 0.94},
    ]
    stages = {"pp": {"seconds": 60.0}, "p-ssl": {"seconds": 90.0}}
    assert list(validated(metrics, stages)) == [
        "p-ssl: validation accuracy 90.00 % at step 50, at best 95.00 % at step 100; the stage took 1.5 min"
    ]
    assert not list(validated(metrics[:2], stages))


def test_wrong_input_leaves_no_folder(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        compare(tiny(), Asked(("magic",), (0,)), tmp_path / "c")
    with pytest.raises(UserError, match="does not exist"):
        compare(tiny("data.images=npz:none.npz"), Asked(DEFAULT_METHODS, (0,)), tmp_path / "c")
    assert not (tmp_path / "c").exists()


POOLS = ("synthesis.images=100", "synthesis.images_per_target=3")


def test_methods_of_a_seed_share_their_pools(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row matches `train`; blocks are made once per seed, and PP's only once with --share-pool."""
    blocks: list[tuple[int, bool, int]] = []
    block = Recipe.block

    def counted(self: Recipe, number: int, *args: Any) -> Any:
        blocks.append((self.seed, self.table is not None, number))
        return block(self, number, *args)

    monkeypatch.setattr(Recipe, "block", counted)
    asked = Asked(("pp", "p-ssl", "pp+p-ssl", "pp+uda"), (3, 4))
    report = compare(tiny(*POOLS), asked, tmp_path / "c")
    uniform = [(seed, False, b) for seed in (3, 4) for b in (0, 1)]
    conditioned = [(seed, True, 0) for seed in (3, 4)]
    assert sorted(blocks) == sorted(uniform + conditioned)
    for method in ("pp", "pp+p-ssl"):
        summary = train(with_method(tiny(*POOLS, seed=3), method), tmp_path / method)
        row = report["methods"][method]
        assert row["test_accuracy"][0] == summary["target"]["test_accuracy"]
        assert row["images_served"] == 192 + (160 if "+" in method else 0)
        assert row["seconds_saved"] > 0
    blocks.clear()
    shared = replace(asked, share_pool=True)
    compare(tiny(*POOLS), shared, tmp_path / "shared")
    assert sorted(blocks) == sorted(uniform[:2] + conditioned)
    # On disk, they are in the comparison's folder.
    blocks.clear()
    disk = compare(tiny(*POOLS, "synthesis.pool=run"), shared, tmp_path / "disk")
    assert len(open_pool(tmp_path / "disk" / "pool" / "pp")) == 100
    assert len(open_pool(tmp_path / "disk" / "pool" / "seed-4" / "p-ssl")) == 45
    assert len(blocks) == 4
    assert disk["methods"]["pp"]["images_synthesized"] == 100


def test_networks_are_compared_on_one_pool(tiny: Tiny, tmp_path: Path) -> None:
    networks = ("ptgm:cnn-small", "ptgm:resnet-small")
    asked = Asked(("scratch", "pp"), (3,), networks, share_pool=True)
    report = compare(tiny(*POOLS), asked, tmp_path / "c")
    assert list(report["methods"]) == [f"{m} @ {n}" for n in networks for m in ("scratch", "pp")]
    lines = report["verdict"].splitlines()
    assert [line.split(": ")[0] for line in lines] == list(networks)
    assert all("PP on one seed" in line for line in lines)
    for name in networks:
        config = with_method(tiny(*POOLS, f"target.network={name}", seed=3), "pp")
        summary = train(config, tmp_path / name)
        found = report["methods"][f"pp @ {name}"]["test_accuracy"]
        assert found == [summary["target"]["test_accuracy"]]
    with pytest.raises(UserError, match="nonet"):
        compare(tiny(), Asked(("pp",), (3,), ("ptgm:nonet",)), tmp_path / "d")
    with pytest.raises(UserError, match=r"too small for pp\.batch_size"):
        compare(tiny("synthesis.images=20"), Asked(("pp",), (3,)), tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("pool", ["memory", "run"])
def test_a_stopped_comparison_goes_on(tiny: Tiny, tmp_path: Path, pool: str) -> None:
    """Finished rows are kept, a line truncated by a kill is made again, and the accuracies are those of an uninterrupted run."""
    config = tiny(*POOLS, f"synthesis.pool={pool}")
    networks = ("ptgm:cnn-small", "ptgm:resnet-small")
    asked = Asked(("scratch", "pp", "pp+p-ssl"), (3, 4), networks, share_pool=True)
    whole = compare(config, asked, tmp_path / "whole")
    rows: list[Row] = []
    context = Context(stop=lambda: len(rows) == 5)
    with pytest.raises(Interrupted):
        compare(config, asked, tmp_path / "parts", context=context, on_row=rows.append)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"method": "pp @ pt')
    assert asked_of(tmp_path / "parts") == asked
    again: list[Row] = []
    parts = compare(config, asked, tmp_path / "parts", resume=True, on_row=again.append)
    assert len(rows) + len(again) == 12
    for name, row in whole["methods"].items():
        assert row["test_accuracy"] == parts["methods"][name]["test_accuracy"]
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["method"] for x in lines] == [r.method for r in rows + again]


def test_only_a_comparison_goes_on_as_one(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        asked_of(tmp_path)
    (tmp_path / "config.toml").touch()
    for text in ("", "[]", '{"seed": 3}'):
        (tmp_path / ASKED).write_text(text)
        with pytest.raises(UserError, match="start one without --resume"):
            asked_of(tmp_path)
