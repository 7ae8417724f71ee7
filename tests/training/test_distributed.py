"""Shares of a batch, and the errors of a wrongly started process. (Several processes at once: tests/runs.)"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptgm_fast.errors import UserError
from ptgm_fast.training import distributed
from ptgm_fast.training.distributed import ProcessGroup, joined, own_device


@given(count=st.integers(0, 500), size=st.integers(1, 40))
def test_shares_are_the_batch_in_order(count: int, size: int) -> None:
    shares = [ProcessGroup(rank, size).share(count) for rank in range(size)]
    assert [i for first, number in shares for i in range(first, first + number)] == list(
        range(count)
    )
    numbers = [number for _, number in shares]
    assert max(numbers) - min(numbers) <= 1


def test_alone_everything_is_as_it_was() -> None:
    group, values = ProcessGroup(), torch.tensor([1.0, 2.0])
    assert group.is_first
    assert group.sum(values) is values
    assert torch.equal(group.gather(values), values[None])
    assert group.any(True)
    assert not group.any(False)
    assert group.least(7) == 7
    assert group.from_first(lambda: "made") == "made"
    assert group.collect(3) == [3]
    group.barrier()
    group.check_equal({"w": values}, "weights")


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "1"):
        if value is None:
            monkeypatch.delenv("WORLD_SIZE", raising=False)
        else:
            monkeypatch.setenv("WORLD_SIZE", value)
        with joined() as group:
            assert group == ProcessGroup()


def test_half_an_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with (
        pytest.raises(UserError, match=r"RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"),
        joined(),
    ):
        pass


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed.torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    own_device("cuda:1", ProcessGroup())
    own_device("cpu", ProcessGroup(1, 4))
    assert taken == []
    own_device("auto", ProcessGroup(3, 4))
    assert taken == [1]
    with pytest.raises(UserError, match="each takes its own"):
        own_device("cuda:1", ProcessGroup(1, 4))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc-per-node 2"):
        own_device("cuda", ProcessGroup(2, 4))
