"""Checkpoints: whole or absent, read without running code."""

from pathlib import Path

import pytest
import torch

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
