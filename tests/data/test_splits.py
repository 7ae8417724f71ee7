"""The split: disjoint, per class, a function of the seed, the same test images whatever the labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptgm_fast.data import split_per_class
from ptgm_fast.errors import UserError

LABELS = torch.arange(120) % 3
NAMES = ("a", "b", "c")


@given(st.integers(1, 20), st.integers(0, 10), st.integers(0, 10), st.integers(0, 2**64 - 1))
def test_parts_are_disjoint_and_balanced(train: int, validation: int, test: int, seed: int) -> None:
    split = split_per_class(LABELS, NAMES, train=train, validation=validation, test=test, seed=seed)
    for part, count in ((split.train, train), (split.validation, validation), (split.test, test)):
        assert LABELS[part].bincount(minlength=3).tolist() == [count] * 3
    together = torch.cat([split.train, split.validation, split.test, split.rest])
    assert together.sort().values.equal(torch.arange(len(LABELS)))


def test_same_seed_same_split_and_other_seed_another() -> None:
    draw = {
        seed: split_per_class(LABELS, NAMES, train=5, validation=5, test=5, seed=seed)
        for seed in (1, 2)
    }
    again = split_per_class(LABELS, NAMES, train=5, validation=5, test=5, seed=1)
    assert torch.equal(draw[1].train, again.train)
    assert not torch.equal(draw[1].train, draw[2].train)


def test_test_images_do_not_depend_on_the_number_of_labels() -> None:
    few, many = (
        split_per_class(LABELS, NAMES, train=train, validation=5, test=10, seed=3)
        for train in (2, 20)
    )
    assert torch.equal(few.test, many.test)
    assert torch.equal(few.validation, many.validation)
    assert set(few.train.tolist()) <= set(many.train.tolist())


def test_all_takes_what_remains() -> None:
    split = split_per_class(LABELS, NAMES, train=None, validation=5, test=10, seed=3)
    assert len(split.train) == 3 * (40 - 15)
    split = split_per_class(LABELS, NAMES, train=4, validation=5, test=None, seed=3)
    assert len(split.test) == 3 * (40 - 9)


@pytest.mark.parametrize(("train", "test"), [(41, 0), (30, 20), (None, 40), (40, None)])
def test_too_few_images_name_the_class(train: int | None, test: int | None) -> None:
    with pytest.raises(UserError, match=r"class 'a' has 40 images"):
        split_per_class(LABELS, NAMES, train=train, validation=0, test=test, seed=0)
