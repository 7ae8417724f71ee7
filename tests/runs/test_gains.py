"""Gains against scipy's paired t statistic; the distance against scipy's entropy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch

from ptgm_fast.config import RunConfig
from ptgm_fast.runs.distance import MOST, distances, entropies, spread
from ptgm_fast.runs.gains import gain, judged
from ptgm_fast.runs.task import build_task

Tiny = Callable[..., RunConfig]


def test_a_gain_and_its_error_are_paired() -> None:
    rng = np.random.default_rng(3)
    before = rng.uniform(0.5, 0.9, 5)
    after = before + rng.normal(0.01, 0.01, 5)
    rows = {name: {"test_accuracy": v.tolist()} for name, v in (("a", before), ("b", after))}
    found = gain(rows, "b", "a")
    assert found.error is not None
    assert found.mean == pytest.approx(100 * (after - before).mean())
    assert found.mean / found.error == pytest.approx(scipy.stats.ttest_rel(after, before).statistic)
    assert gain(rows, "a", "b").mean == -found.mean


def test_clear_is_more_than_two_standard_errors() -> None:
    rows = {"a": {"test_accuracy": [0.5, 0.5]}, "b": {"test_accuracy": [0.51, 0.532]}}
    found = gain(rows, "b", "a")
    assert (str(found), found.is_clear, judged(found)) == ("+2.1 ± 1.1", False, "made no clear difference:")  # fmt: skip
    rows["b"]["test_accuracy"][0] = 0.512
    assert judged(gain(rows, "b", "a")) == "helped:"
    assert judged(gain(rows, "a", "b")) == "hurt:"
    one = {name: {"test_accuracy": row["test_accuracy"][:1]} for name, row in rows.items()}
    assert (str(gain(one, "b", "a")), judged(gain(one, "b", "a"))) == ("+1.2", "on one seed:")


def test_entropies_of_soft_labels() -> None:
    soft = torch.rand(9, 7, generator=torch.Generator().manual_seed(1)).softmax(1)
    expected = scipy.stats.entropy(soft.numpy(), axis=1) / math.log(7)
    assert np.allclose(entropies(soft), expected, atol=1e-6)
    ends = torch.stack([torch.eye(7)[2], torch.full((7,), 1 / 7)])
    assert entropies(ends).tolist() == pytest.approx([0, 1], abs=1e-6)
    assert entropies(torch.ones(2, 1)).tolist() == [0, 0]


def test_the_distance_is_of_labelled_images_and_the_pair_alone(tiny: Tiny) -> None:
    task = build_task(tiny())
    found = distances(task)
    logits = task.source.classify(task.data.train.images).detach().numpy()  # type: ignore[arg-type]
    expected = scipy.stats.entropy(scipy.special.softmax(logits, 1), axis=1) / math.log(6)
    assert np.allclose(found, expected, atol=1e-5)
    other = tiny("p_ssl.pcs_temperature=0.2", "p_ssl.pcs_top_k=2")
    assert distances(build_task(other)).equal(found)
    assert spread(task, 5).tolist() == [0, 4, 7, 10, 14]
    assert MOST >= len(found) == 15
