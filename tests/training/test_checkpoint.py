"""Checkpoints: atomic, and read without running code."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptgm_fast.errors import UserError
from ptgm_fast.training.checkpoint import CheckpointFile


def test_round_trip_with_what_is_carried(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    assert not file.exists()
    file.carried = {"results": [{"stage": "pp"}]}
    file.save({"step": 3, "network": {"w": torch.arange(3.0)}})
    state = file.load()
    assert state["step"] == 3
    assert state["results"] == [{"stage": "pp"}]
    assert torch.equal(state["network"]["w"], torch.arange(3.0))


def test_a_full_disk_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    file.save({"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            file.save({"step": 2})
    assert file.load()["step"] == 1


@pytest.mark.parametrize("damage", ["cut", "text", "code", "format"])
def test_damaged_checkpoints(tmp_path: Path, damage: str) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    file.save({"network": torch.zeros(1000)})
    if damage == "cut":
        file.path.write_bytes(file.path.read_bytes()[:700])
    elif damage == "text":
        file.path.write_text("not a checkpoint")
    elif damage == "code":
        torch.save({"format": 1, "x": Path.cwd}, file.path)
    else:
        torch.save({"format": 99}, file.path)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        file.load()


def saved(folder: Path, steps: int, **options: Any) -> CheckpointFile:
    file = CheckpointFile(folder / "checkpoint.pt", **options)
    for step in range(1, steps + 1):
        file.save({"stage": "pp", "step": step, "network": {"w": torch.full((50,), float(step))}})
    return file


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    file = saved(tmp_path, 6, keep=keep)
    assert len(file.files()) == keep
    kept = [torch.load(p, weights_only=True)["step"] for p in file.files()]
    assert kept == list(range(6, 6 - keep, -1))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in file.files())


def test_fewer_than_one_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointFile(tmp_path / "checkpoint.pt", keep=0)


def test_a_damaged_newest_one_falls_back_to_the_one_before(tmp_path: Path) -> None:
    said: list[str] = []
    file = saved(tmp_path, 3, keep=3, notice=said.append)
    file.path.write_bytes(file.path.read_bytes()[:-900])
    (tmp_path / "checkpoint.1.pt").write_bytes(b"")
    assert file.load()["step"] == 1
    assert len(said) == 2
    assert all("\n" not in line for line in said)
    assert "checkpoint.pt" in said[0]
    assert "step 1 of stage 'pp'" in said[0]
    # They are renamed, not lost: the next saves must not count them as checkpoints.
    assert (tmp_path / "checkpoint.pt.damaged").exists()
    assert file.files() == [tmp_path / "checkpoint.2.pt"]
    said.clear()
    assert file.load()["step"] == 1
    assert said == []


def test_no_whole_checkpoint_left(tmp_path: Path) -> None:
    file = saved(tmp_path, 2, keep=2)
    for path in file.files():
        path.write_bytes(b"x")
    with pytest.raises(UserError, match="No intact checkpoint is left"):
        file.load()
    assert len(file.files()) == 2


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    """torch.load alone reads most files with a flipped bit as if nothing were wrong."""
    file = saved(tmp_path_factory.mktemp("flipped"), 1)
    data = bytearray(file.path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        file.load()


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("fails_at", range(12))
def test_a_kill_between_any_two_steps_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, fails_at: int
) -> None:
    """The last save is interrupted after each of its flushes and renames in turn."""
    file = saved(tmp_path, 4, keep=keep)
    calls: list[int] = []

    class Killed(BaseException):
        pass

    def last(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(0)
            if len(calls) > fails_at:
                raise Killed
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", last(os.fsync))
        patch.setattr(Path, "replace", last(Path.replace))
        with contextlib.suppress(Killed):
            saved_step = {"stage": "pp", "step": 5, "network": {}}
            file.save(saved_step)
    again = CheckpointFile(file.path, keep=keep)
    step = again.load()["step"]
    assert step in (4, 5)
    again.save({"stage": "pp", "step": step + 1, "network": {}})
    assert again.load()["step"] == step + 1


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1, config="seed = 1\nlr = 0.1\n")
    with pytest.raises(UserError, match=r"seed = 2 \(now\); seed = 1 \(before\)"):
        CheckpointFile(tmp_path / "checkpoint.pt", config="seed = 2\nlr = 0.1\n").load()
    assert CheckpointFile(tmp_path / "checkpoint.pt", config="seed = 1\nlr = 0.1\n").load()
