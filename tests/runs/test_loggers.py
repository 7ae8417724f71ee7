"""`--logger tensorboard`, read back by TensorBoard itself; unknown and missing loggers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptgm_fast.config import RunConfig
from ptgm_fast.errors import MissingExtraError, UserError
from ptgm_fast.runs.loggers import open_logger
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    assert set(accumulator.Tags()["images"]) <= {"samples", "curves"}
    found = {
        tag: [(e.step, e.value) for e in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    found["images"] = [(0, float(len(accumulator.Tags()["images"])))]
    return found


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        for name, value in record.items():
            if name not in ("stage", "step"):
                found.setdefault(f"{record['stage']}/{name}", []).append((record["step"], value))
    found["images"] = [(0, 2.0)]
    return found


def assert_same(folder: Path) -> None:
    ours, theirs = expected(folder), logged(folder)
    assert ours.keys() == theirs.keys()
    for tag, points in ours.items():
        assert [step for step, _ in points] == [step for step, _ in theirs[tag]]
        assert [v for _, v in theirs[tag]] == pytest.approx([v for _, v in points], rel=1e-5)


def test_tensorboard_reads_what_the_metrics_hold_also_after_a_resume(
    tiny: Tiny, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    config, out = tiny(), tmp_path / "run"
    steps: list[int] = []
    logger = open_logger("tensorboard", out)
    stopping = Context(
        on_step=lambda stage, step, total: steps.append(step), stop=lambda: len(steps) >= 25
    )
    with pytest.raises(Interrupted):
        train(config, out, context=logger.watch(stopping))
    logger = open_logger("tensorboard", out)
    train(config, out, resume=True, context=logger.watch(Context()))
    logger.close()
    assert_same(out)


def test_an_unknown_logger_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown --logger 'tensorbord' \(did you mean 'tensorboard'"
    ):
        open_logger("tensorbord", tmp_path)
    with pytest.raises(UserError, match=r"accepted: tensorboard.*metrics\.jsonl"):
        open_logger("wandb", tmp_path)


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"ptgm-fast\[tensorboard\]"):
        open_logger("tensorboard", tmp_path)
