"""How far a target is from the source, as seen by the source classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import conditioning_table

# Enough to distinguish targets; from more labelled images, these are spread over the classes.
MOST = 256


def entropies(soft_labels: Tensor) -> Tensor:
    """H(q) / log K of each soft label [N, K]: 0 for a single class, 1 for a uniform label; float32 [N]. 0 if K = 1."""
    return torch.special.entr(soft_labels).sum(1) / torch.tensor(max(2, soft_labels.shape[1])).log()


def spread(task: Task, most: int) -> Tensor:
    """Indices of at most `most` labelled images, spread over the classes, int64."""
    labelled = len(task.data.train)
    return torch.linspace(0, labelled - 1, min(most, labelled)).round().long()


def distances(task: Task) -> Tensor:
    """H(softmax(C_s(x))) / log K_s for at most `MOST` labelled images x of the task; float32 [N] on the CPU.

    The mean is the target's distance from the source. It depends only on the images and the pair: not on
    p_ssl.pcs_temperature or pcs_top_k, and not on test images.
    """
    images = task.data.asking[0][spread(task, MOST)]
    return entropies(conditioning_table(task.source, images).soft_labels.cpu())
