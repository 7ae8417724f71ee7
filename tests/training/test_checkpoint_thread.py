"""Checkpoints from a GPU: copied to the host, written by a thread. Without a GPU, a stand-in makes the copies."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from on_disk import same, stop_after, weights
from ptgm_fast.config import RunConfig
from ptgm_fast.runs.train import train
from ptgm_fast.training import checkpoint
from ptgm_fast.training.checkpoint import CheckpointFile, to_host, written
from ptgm_fast.training.context import Context, Interrupted

sys.path.insert(0, str(Path(__file__).parent))
from fake_cuda import _to as to_fake_gpu

Tiny = Callable[..., RunConfig]


class StandIn:
    """Copies tensors of any device as `to_host` does; the copies arrive when the gate is opened."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: list[str] = []

    def __call__(self, state: Any) -> tuple[Any, Callable[[], None]]:
        def arrived() -> None:
            assert self.gate.wait(20)
            self.threads.append(threading.current_thread().name)

        return copy.deepcopy(state), arrived


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(checkpoint, "to_host", stand_in)
    return stand_in


def test_the_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, device: StandIn
) -> None:
    file, weight = CheckpointFile(tmp_path / "checkpoint.pt", keep=2), torch.zeros(3)
    file.carried = {"results": []}
    file.save({"stage": "pp", "step": 1, "w": weight})
    weight += 1
    assert not file.path.exists()
    device.gate.set()
    # Each of these waits for the pending write.
    assert file.exists()
    assert torch.equal(file.load()["w"], torch.zeros(3))
    file.save({"stage": "pp", "step": 2, "w": weight})
    file.save({"stage": "pp", "step": 3, "w": weight})
    assert [torch.load(p, weights_only=True)["step"] for p in file.files()] == [3, 2]
    assert len(device.threads) == 3
    assert threading.current_thread().name not in device.threads


def test_an_error_of_the_thread_is_raised_once(
    tmp_path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.gate.set()
    file = CheckpointFile(tmp_path / "checkpoint.pt")
    file.save({"stage": "pp", "step": 1})
    file.wait()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    for later in (lambda: file.save({"stage": "pp", "step": 3}), file.wait, file.files):
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            file.save({"stage": "pp", "step": 2})
            with pytest.raises(OSError, match="No space left"):
                later()
        file.wait()
        assert file.load()["step"] == 1

    def block() -> None:
        with written(file):
            file.save({"stage": "pp", "step": 2})

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            block()
    assert file.load()["step"] == 1


def test_a_run_is_the_same_and_ends_with_its_thread(
    tiny: Tiny, tmp_path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished, stopped, or ended by an unexpected exception: the last checkpoint is intact in each case."""
    device.gate.set()
    config, before = tiny(), set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "to_host", lambda state: None)
        train(config, tmp_path / "at once")
    train(config, tmp_path / "whole")
    assert not set(threading.enumerate()) - before
    with pytest.raises(Interrupted):
        train(config, tmp_path / "stopped", context=stop_after("pp", 7))

    def die(name: str, done: int, steps: int) -> None:
        if name == "p-ssl" and done == 7:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "killed", context=Context(on_step=die))
    for name, step in (("stopped", 7), ("killed", 6)):
        assert not set(threading.enumerate()) - before
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        assert state["step"] == step
        train(config, tmp_path / name, resume=True)
    expected = weights(tmp_path / "at once")
    assert all(same(weights(tmp_path / n), expected) for n in ("whole", "stopped", "killed"))
    assert len(device.threads) > 10


def test_a_state_on_a_gpu_goes_to_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert to_host({"network": nn.Linear(2, 2).state_dict(), "step": 3}) is None
    asked: list[Any] = []

    class Event:
        def record(self, stream: Any) -> None:
            asked.append(("record", stream))

        def synchronize(self) -> None:
            asked.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    empty_like = torch.empty_like

    def allocated(tensor: Any, **options: Any) -> Any:
        asked.append(options.get("pin_memory"))
        return empty_like(tensor, **options)

    monkeypatch.setattr(torch, "empty_like", allocated)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_fake_gpu(network)
        state = {"network": network.state_dict(), "best": None, "here": torch.ones(2), "step": 3}
        copied = to_host(state)
    assert copied is not None
    held, arrived = copied
    assert asked == [True] * 8 + [("record", "stream of cuda:0")]
    arrived()
    assert asked[-1] == "synchronize"
    assert held["network"]._metadata == state["network"]._metadata
    assert (held["best"], held["step"]) == (None, 3)
    for name, value in state["network"].items():
        found = held["network"][name]
        assert found.device.type == "cpu"
        assert (found.shape, found.stride(), found.dtype) == (value.shape, value.stride(), value.dtype)  # fmt: skip
