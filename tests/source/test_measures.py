"""The figures of a pair: groups of classes, shares, diversity."""

from __future__ import annotations

import pytest
import torch

from ptgm_fast.errors import UserError
from ptgm_fast.training.source.measures import accuracy, class_groups, diversity


def test_groups() -> None:
    names = ("A", "b", "a", "B", "1")
    assert class_groups(names, "none").tolist() == [0, 1, 2, 3, 4]
    assert class_groups(names, "ignore-case").tolist() == [0, 1, 0, 1, 2]
    assert class_groups(names, (("b", "1"),)).tolist() == [0, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("A", "c"),), "names the class 'c', which the data does not have"),
        ((("A", "b"), ("b", "1")), "names the class 'b' twice"),
    ],
)
def test_groups_name_the_mistake(groups: tuple[tuple[str, ...], ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_groups(("A", "b", "1"), groups)


def test_accuracy_exact_and_by_group() -> None:
    groups = class_groups(("A", "a", "b"), "ignore-case")
    found = accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 2, 1]), groups)
    assert found == {"exact": 0.5, "equivalent": 0.75}


def test_diversity_is_relative_to_real_images() -> None:
    real = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    assert diversity(real, real) == pytest.approx(1.0)
    assert diversity(real * 0.5 + 7, real) == pytest.approx(0.5, rel=1e-4)
    assert diversity(real[:, :1].expand(-1, 6, -1), real) == pytest.approx(0.0, abs=1e-2)
