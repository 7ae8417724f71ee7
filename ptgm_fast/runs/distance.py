"""How far a target lies from the source, as the source classifier sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import conditioning_table

# Enough to tell targets apart; of more labelled images these are spread over the classes.
MOST = 256


def entropies(soft_labels: Tensor) -> Tensor:
    """H(q) / log K of each soft label [N, K]: 0 for one class alone, 1 for all alike; float32 [N]. For K = 1, 0."""
    return torch.special.entr(soft_labels).sum(1) / torch.tensor(max(2, soft_labels.shape[1])).log()


def spread(task: Task, most: int) -> Tensor:
    """The numbers of at most so many labelled images, spread over the classes, int64."""
    labelled = len(task.data.train)
    return torch.linspace(0, labelled - 1, min(most, labelled)).round().long()


def distances(task: Task) -> Tensor:
    """H(softmax(C_s(x))) / log K_s of the labelled images x of the task, at most `MOST`; float32 [N] on the CPU.

    Their mean is the target's distance from the source. It is of the images and the pair alone: p_ssl.pcs_temperature and
    pcs_top_k have no part in it, and test images neither.
    """
    images = task.data.asking[0][spread(task, MOST)]
    return entropies(conditioning_table(task.source, images).soft_labels.cpu())
