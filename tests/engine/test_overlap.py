"""The rule for prefetching: it uses no clock, and never prefetches from a source that uses torch's own random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptgm_fast import FastSampler, generators
from ptgm_fast.engine.overlap import OverlapPlan, plan_overlap
from ptgm_fast.errors import UserError
from ptgm_fast.generators import Generator
from ptgm_fast.sampling import FrozenGenerator, SourceModels

CPU = torch.device("cpu")


class Elsewhere:
    """The attributes of a source on another device that the rule reads."""

    def __init__(self, kind: str, draws: bool = False) -> None:
        self.device, self.draws_from_torch = torch.device(kind), draws


@pytest.fixture
def source() -> FrozenGenerator:
    return FrozenGenerator(generators.load("letters"))


@pytest.fixture
def three_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(3)


def noisy(generator: Generator) -> Generator:
    """The generator, with noise from torch's RNG added to its images."""
    honest = generator.generate

    def generate(*arguments: Any, **settings: Any) -> Tensor:
        images = honest(*arguments, **settings)
        return images + 1e-3 * torch.randn_like(images)

    generator.generate = generate  # type: ignore[method-assign]
    return generator


def test_a_cpu_overlaps_only_when_told(source: FrozenGenerator) -> None:
    assert not plan_overlap("auto", source).ahead
    assert plan_overlap("always", source).ahead
    assert not plan_overlap("never", source).ahead


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_streams_overlap_unless_told(kind: str) -> None:
    for choice, ahead in (("auto", True), ("always", True), ("never", False)):
        plan = plan_overlap(choice, Elsewhere(kind))  # type: ignore[arg-type]
        assert plan.ahead == ahead
        assert (kind if ahead else "never") in plan.reason


def test_another_choice_is_refused(source: FrozenGenerator) -> None:
    for choice in (True, "sometimes"):
        with pytest.raises(ValueError, match='must be "auto", "always" or "never", got'):
            plan_overlap(choice, source)  # type: ignore[arg-type]


def test_what_draws_from_torch_is_not_made_ahead() -> None:
    plan = plan_overlap("auto", Elsewhere("cuda", draws=True))  # type: ignore[arg-type]
    assert (plan.ahead, plan.reason) == (
        False,
        "synthesis draws from torch's global random number generator",
    )
    noise = noisy(generators.load("letters"))
    with pytest.raises(
        UserError, match=r'draws from torch\'s global random number generator. Use "auto"'
    ):
        plan_overlap("always", FrozenGenerator(noise))
    with pytest.raises(UserError, match="draws from torch's global"):
        FastSampler(noise, batch_size=4, overlap="always")
    assert not FrozenGenerator(generators.load("letters")).draws_from_torch


def test_a_classifier_that_draws_is_found_and_dropout_in_eval_is_not() -> None:
    class Draws(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.randn(len(images), 52)

    plain = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(28 * 28, 52))
    assert SourceModels(generators.load("letters"), Draws()).draws_from_torch
    assert not SourceModels(generators.load("letters"), plain).draws_from_torch


def test_finding_out_changes_nothing() -> None:
    noise = FrozenGenerator(noisy(generators.load("letters")))
    before = torch.get_rng_state()
    assert noise.draws_from_torch
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def ahead() -> OverlapPlan:
    return OverlapPlan(True, "told")


@pytest.mark.usefixtures("three_threads")
def test_each_side_has_its_share_of_the_threads(ahead: OverlapPlan) -> None:
    with ahead.ring(lambda i: torch.get_num_threads(), CPU, stop=4, depth=2, describe=str) as ring:
        assert [(made, torch.get_num_threads()) for made in ring] == [(1, 2)] * 4
    assert torch.get_num_threads() == 3


def test_one_thread_is_enough_when_told(ahead: OverlapPlan) -> None:
    with ahead.ring(lambda i: torch.get_num_threads(), CPU, stop=2, depth=2, describe=str) as ring:
        assert list(ring) == [1, 1]


@pytest.mark.usefixtures("three_threads")
def test_without_overlap_a_batch_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []

    def produce(index: int) -> int:
        made.append(index)
        return torch.get_num_threads()

    with OverlapPlan(False, "").ring(produce, CPU, start=5, depth=8, describe=str) as ring:
        for index in range(5, 9):
            assert next(ring) == 3
            assert made == list(range(5, index + 1))
