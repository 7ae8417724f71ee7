"""Whether batches are made ahead, by the operations of both sides; and what is counted."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ptgm_fast import kernels
from ptgm_fast.engine.overlap import (
    LEAST_GAIN,
    SCALING,
    count_operations,
    draws_from_torch,
    half,
    plan_overlap,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
operations = st.floats(1.0, 1e12)


def not_called() -> tuple[float, float]:
    raise AssertionError("nothing was to be counted")


@pytest.fixture
def three_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(3)


def predicted(produced: float, consumed: float, threads: int, share: int) -> float:
    """Seconds a step, in units of an operation on one thread; share 0: no overlap."""
    if not share:
        return (produced + consumed) / threads**SCALING
    return max(produced / share**SCALING, consumed / (threads - share) ** SCALING)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_never_is_never(device: torch.device, threads: int) -> None:
    plan = plan_overlap("never", device, threads=threads, work=not_called)
    assert not plan.ahead
    assert "never" in plan.reason


def test_one_thread_overlaps_only_when_told() -> None:
    plan = plan_overlap("auto", CPU, threads=1, work=not_called)
    assert not plan.ahead
    assert "one thread" in plan.reason
    told = plan_overlap("always", CPU, threads=1, work=lambda: (1.0, 1.0))
    assert (told.ahead, told.producer_threads) == (True, 1)


@pytest.mark.parametrize("choice", ["auto", "always"])
@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_streams_always_overlap(choice: str, kind: str) -> None:
    plan = plan_overlap(choice, torch.device(kind), threads=1, work=not_called)  # type: ignore[arg-type]
    assert plan.ahead
    assert kind in plan.reason


@given(operations, operations, st.integers(2, 96))
def test_the_share_is_the_fastest_and_a_tie_is_not_taken(
    produced: float, consumed: float, threads: int
) -> None:
    best = min(predicted(produced, consumed, threads, p) for p in range(1, threads))
    gain = predicted(produced, consumed, threads, 0) / best
    auto = plan_overlap("auto", CPU, threads=threads, work=lambda: (produced, consumed))
    told = plan_overlap("always", CPU, threads=threads, work=lambda: (produced, consumed))
    assert told.ahead
    assert 1 <= told.producer_threads < threads
    chosen = predicted(produced, consumed, threads, told.producer_threads)
    assert chosen == pytest.approx(best, rel=1e-9)
    if gain != pytest.approx(LEAST_GAIN, rel=1e-9):
        assert auto.ahead == (gain > LEAST_GAIN)
    if auto.ahead:
        assert auto == told
    assert f"{gain:.2f} times as fast" in told.reason


def test_even_work_is_halved_and_uneven_work_left_together() -> None:
    even = plan_overlap("auto", CPU, threads=2, work=lambda: (5e6, 5e6))
    assert (even.ahead, even.producer_threads) == (True, 1)
    assert "50%" in even.reason
    # A tenth of the work ahead would leave a thread idle for most of the step.
    assert not plan_overlap("auto", CPU, threads=2, work=lambda: (1e6, 9e6)).ahead
    assert not plan_overlap("auto", CPU, threads=2, work=lambda: (9e6, 1e6)).ahead
    most = plan_overlap("always", CPU, threads=8, work=lambda: (7e6, 1e6))
    assert most.producer_threads == 7


@pytest.mark.parametrize("choice", ["auto", "always"])
def test_nothing_to_do_is_no_mistake(choice: str) -> None:
    plan = plan_overlap(choice, CPU, threads=4, work=lambda: (0.0, 0.0))  # type: ignore[arg-type]
    assert plan.ahead == (choice == "always")


def test_the_decision_is_the_same_every_time() -> None:
    plans = [plan_overlap("auto", CPU, threads=6, work=lambda: (3e8, 7e8)) for _ in range(20)]
    assert len(set(plans)) == 1


@pytest.mark.usefixtures("three_threads")
def test_each_side_has_its_share_of_the_threads() -> None:
    plan = plan_overlap("always", CPU, threads=3, work=lambda: (2.0, 1.0))
    assert plan.producer_threads == 2
    with plan.ring(lambda i: torch.get_num_threads(), CPU, stop=4, depth=2, describe=str) as ring:
        assert [(made, torch.get_num_threads()) for made in ring] == [(2, 1)] * 4
    assert torch.get_num_threads() == 3
    assert half(3).producer_threads == half(1).producer_threads == 1


@pytest.mark.usefixtures("three_threads")
def test_without_overlap_a_batch_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []

    def produce(index: int) -> int:
        made.append(index)
        return torch.get_num_threads()

    plan = plan_overlap("never", CPU, threads=3)
    with plan.ring(produce, CPU, start=5, depth=8, describe=str) as ring:
        for index in range(5, 9):
            assert next(ring) == 3
            assert made == list(range(5, index + 1))


def test_operations_are_those_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 10 * 12, 7)
    )
    images = torch.zeros(2, 3, 10, 12)
    convolution = 2 * (2 * 8 * 10 * 12) * (3 * 3 * 3)
    linear = 2 * (2 * 7) * (8 * 10 * 12)
    with torch.no_grad():
        assert count_operations(lambda: network(images)) == convolution + linear
    assert count_operations(lambda: images + 1) == 0


def test_whatever_draws_from_torch_is_found() -> None:
    images, dropout = torch.ones(2, 3, 8, 8), nn.Dropout(0.5)
    for work in (lambda: torch.randn(1), lambda: torch.randperm(3), lambda: dropout(images)):
        assert draws_from_torch(work, CPU)
    dropout.eval()
    own = torch.Generator()
    for work in (
        lambda: dropout(images),
        lambda: torch.rand(2, generator=own),
        lambda: kernels.latents(4, 3, seed=1, start=0, device=CPU),
    ):
        assert not draws_from_torch(work, CPU)
