"""Accuracy and expected calibration error."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptgm_fast.errors import UserError
from ptgm_fast.training.evaluation import evaluate, expected_calibration_error


def ece_by_loop(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """The definition (Guo et al. 2017, eq. 3), bin by bin."""
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for b in range(num_bins):
        inside = (confidence > b / num_bins) & (confidence <= (b + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(
                (predicted == labels)[inside].mean() - confidence[inside].mean()
            )
    return total


@given(st.integers(1, 200), st.integers(2, 12), st.integers(0, 10**6))
def test_calibration_error_is_its_definition(num: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_classes, 0.5), num)
    labels = rng.integers(0, num_classes, num)
    ours = expected_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert ours == pytest.approx(ece_by_loop(probabilities, labels), abs=1e-9)


def test_calibration_error_of_simple_cases() -> None:
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0.0
    assert expected_calibration_error(sure, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no samples"):
        expected_calibration_error(sure[:0], torch.empty(0, dtype=torch.int64))


def test_accuracy_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.Dropout(0.5))
    images = torch.randint(0, 256, (1203, 1, 4, 4), dtype=torch.uint8)
    labels = torch.randint(0, 5, (1203,))
    result = evaluate(network, lambda batch: batch.float() / 255, images, labels)
    assert network.training
    assert result.probabilities.shape == (1203, 5)
    assert result.accuracy == pytest.approx(
        metrics.accuracy_score(labels, result.probabilities.argmax(1))
    )


def test_outputs_that_are_not_finite_are_said() -> None:
    """The last step may have broken the weights although every earlier loss was finite."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    torch.nn.init.constant_(network[1].weight, float("inf"))
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"not finite\. Lower the learning rates"):
        evaluate(network, lambda x: x.float(), images, torch.zeros(3, dtype=torch.int64))
