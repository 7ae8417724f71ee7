"""Accuracy and calibration of a classifier on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptgm_fast.data import Images, in_batches
from ptgm_fast.errors import UserError


@dataclass(frozen=True)
class Evaluation:
    """accuracy and ece in [0, 1]; probabilities float32 [N, K] and labels int64 [N] on the CPU."""

    accuracy: float
    ece: float
    probabilities: Tensor
    labels: Tensor


@torch.no_grad()
def evaluate(
    network: nn.Module, prepare: Callable[[Tensor], Tensor], images: Images, labels: Tensor
) -> Evaluation:
    """Top-1 accuracy and expected calibration error of `network` in eval mode.

    images uint8 [N, C, H, W], in memory or on disk; prepare converts a batch of them to the network's input. The network's
    mode is restored. Raises UserError for non-finite outputs, which can occur although the loss was finite at every step.
    """
    training = network.training
    network.eval()
    batches = [network(prepare(batch)).float().softmax(1).cpu() for batch in in_batches(images)]
    network.train(training)
    probabilities = torch.cat(batches)
    if not probabilities.isfinite().all():
        raise UserError(
            "the outputs of the trained network are not finite. Lower the learning rates, set gradient_clip = 1.0, "
            "or check the data for constant images"
        )
    labels = labels.cpu()
    accuracy = (probabilities.argmax(1) == labels).double().mean().item()
    return Evaluation(
        accuracy, expected_calibration_error(probabilities, labels), probabilities, labels
    )


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, *, num_bins: int = 15
) -> float:
    """ECE = sum over bins b of (n_b / N) |accuracy_b - confidence_b|, in [0, 1].

    probabilities [N, K], labels int64 [N]. Equal-width bins ((b-1)/B, b/B] of the top probability
    (Guo et al. 2017, arXiv:1706.04599, eq. 3; 15 bins as in that paper). Raises ValueError for N = 0.
    """
    if len(labels) == 0:
        raise ValueError("the calibration error of no samples is undefined")
    confidence, correct, bins = _binned(probabilities, labels, num_bins)
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, correct - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def reliability_bins(
    probabilities: Tensor, labels: Tensor, *, num_bins: int = 15
) -> list[tuple[int, float, float]]:
    """For each bin of `expected_calibration_error`: number of samples, mean confidence, accuracy (both 0.0 if it is empty).

    probabilities [N, K], labels int64 [N]; a reliability diagram's bars (Guo et al. 2017, arXiv:1706.04599, figure 1).
    """
    confidence, correct, bins = _binned(probabilities, labels, num_bins)
    zeros = torch.zeros(num_bins, dtype=torch.float64)
    counts = torch.bincount(bins, minlength=num_bins)
    means = [
        (zeros.index_add(0, bins, values) / counts.clamp(min=1)).tolist()
        for values in (confidence, correct)
    ]
    return list(zip(counts.tolist(), *means, strict=True))


def _binned(probabilities: Tensor, labels: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Confidence, correctness (0 or 1) and bin of each sample."""
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels).double()
    bins = (confidence * num_bins).ceil().long().clamp_(1, num_bins) - 1
    return confidence, correct, bins
