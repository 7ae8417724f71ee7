"""Split a labelled set into training, validation and test images, class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.errors import UserError


@dataclass(frozen=True)
class Split:
    """Disjoint index sets, int64, each sorted by class and then in drawn order."""

    train: Tensor
    validation: Tensor
    test: Tensor
    rest: Tensor


def split_per_class(
    labels: Tensor,
    class_names: tuple[str, ...],
    *,
    train: int | None,
    validation: int,
    test: int | None,
    seed: int,
) -> Split:
    """Draw `test`, then `validation`, then `train` images of each class, without overlap; `rest` is the remainder.

    labels: int64 [N]. train=None takes all that the others leave, and so does test=None (not both). seed: 64 bits. The
    draw of a class depends only on (seed, class), and the test and validation sets do not depend on `train`, so runs with
    more labels are tested on the same images. Raises UserError naming a class with too few images.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": [], "rest": []}
    for label, name in enumerate(class_names):
        members = np.flatnonzero(labels.numpy() == label)
        order = np.random.Generator(
            np.random.Philox(key=np.array([seed, label], dtype=np.uint64))
        ).permutation(members)
        num_test = max(0, len(order) - validation - (train or 0)) if test is None else test
        num_train = max(0, len(order) - validation - num_test) if train is None else train
        asked = num_train + validation + num_test
        if (
            asked > len(order)
            or (train is None and num_train == 0)
            or (test is None and num_test == 0)
        ):
            raise UserError(
                f"class {name!r} has {len(order)} images, but {_wanted(train)} for training, {validation} for validation and "
                f"{_wanted(test)} for test are required; lower data.labels_per_class, data.validation_per_class or data.test_per_class"
            )
        bounds = np.cumsum([num_test, validation, num_train])
        parts["test"].append(order[: bounds[0]])
        parts["validation"].append(order[bounds[0] : bounds[1]])
        parts["train"].append(order[bounds[1] : bounds[2]])
        parts["rest"].append(order[bounds[2] :])
    return Split(**{key: torch.from_numpy(np.concatenate(value)) for key, value in parts.items()})


def _wanted(count: int | None) -> str:
    return "all that remain" if count is None else str(count)
