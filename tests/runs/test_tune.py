"""The search for a cheaper budget: what is drawn, kept and chosen, and that it can be stopped."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from ptgm_fast.config import RunConfig, load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs import tune as tuning
from ptgm_fast.runs.tune import (
    FIRST_SEED,
    Budget,
    Trial,
    choose,
    halved,
    space,
    tune,
    with_settings,
)
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "ROUNDS", (1, 2))
    monkeypatch.setattr(tuning, "LEAST_TRIALS", 4)


def budget(number: int, accuracy: float, seconds: float, error: float = 0.01) -> Budget:
    return Budget(number, {"pp.steps": number}, 4, accuracy, seconds, accuracy - 0.9, error)


@pytest.mark.usefixtures("quick")
def test_a_search_from_the_config_to_a_config(tiny: Tiny, tmp_path: Path) -> None:
    """Every budget follows its settings and is trained like any run; the test images are not used."""
    trials: list[Trial] = []
    report = tune(tiny(), tmp_path / "t", minutes=1e-9, on_trial=trials.append)
    assert json.loads((tmp_path / "t" / "tune.json").read_text()) == report
    assert trials[0].settings == {}
    assert report["seeds"] == [FIRST_SEED, FIRST_SEED + 1]
    assert {t.seed for t in trials} == set(report["seeds"])
    assert report["chosen"] in report["budgets"]
    assert 0 in {row["number"] for row in report["budgets"]}
    chosen = load_config(tmp_path / "t" / "chosen.toml")
    given = tomllib.loads((tmp_path / "t" / "chosen.toml").read_text())
    for name, value in report["chosen"]["settings"].items():
        table, key = name.split(".")
        assert given[table][key] == value
    assert chosen.seed == tiny().seed
    assert (tmp_path / "t" / "frontier.png").stat().st_size > 5000
    lines = (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()
    assert [Trial(**json.loads(line)) for line in lines] == trials


@pytest.mark.usefixtures("quick")
def test_a_stopped_search_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    trials: list[Trial] = []
    context = Context(stop=lambda: len(trials) == 3)
    with pytest.raises(Interrupted):
        tune(tiny(), tmp_path / "t", minutes=1e-9, context=context, on_trial=trials.append)
    first = list(trials)
    report = tune(tiny(), tmp_path / "t", minutes=1e-9, resume=True, on_trial=trials.append)
    places = [(t.number, t.seed) for t in trials]
    assert len(set(places)) == len(places)
    assert first == trials[:3]
    assert report["seconds"] == pytest.approx(sum(t.seconds for t in trials))


def test_what_is_searched_fits_the_config(tiny: Tiny) -> None:
    """Each value by itself gives a valid config; the config's own value comes first."""
    config = tiny()
    values = space(config)
    assert {"pp.steps", "pp.resolution", "synthesis.images", "p_ssl.batch_size"} <= set(values)
    for name, choices in values.items():
        assert len(choices) > 1, name
        own = config.model_dump(mode="json")
        for part in name.split("."):
            own = own[part]
        assert own == choices[0]
        for value in choices[1:]:
            assert with_settings(config, {name: value}) != config
    assert "pp.steps" not in space(tiny('stages=["supervised"]'))
    assert "p_ssl.batch_size" not in space(tiny('stages=["supervised"]'))
    with pytest.raises(ValidationError):
        with_settings(config, {"pp.steps": 0})


def test_the_more_accurate_half_is_kept() -> None:
    found = [
        budget(0, 0.90, 10),
        budget(1, 0.99, 20),  # slower than the config itself
        budget(2, 0.91, 5),
        budget(3, 0.70, 1),
        budget(4, 0.91, 6),
    ]
    assert halved(found) == [0, 2, 4]
    assert halved(found[:4]) == [0, 2]
    assert halved(found[:2]) == [0]


def test_the_fastest_that_is_no_worse_is_chosen() -> None:
    own = budget(0, 0.90, 10, 0.0)
    equal, better, worse = budget(1, 0.895, 4), budget(2, 0.95, 6), budget(3, 0.88, 1)
    slow = budget(4, 0.99, 11)
    assert choose([own, equal, better, worse, slow]) == equal
    assert choose([own, better, worse, slow]) == better
    assert choose([own, worse, slow]) == own
    assert choose([own, replace(worse, error=0.03)]).number == 3


def test_without_validation_images_there_is_nothing_to_choose_by(
    tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no validation images"):
        tune(tiny("data.validation_per_class=0"), tmp_path / "t", minutes=1)
