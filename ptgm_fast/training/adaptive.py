"""Adaptive thresholds and sample weights for pseudo samples: FlexMatch, FreeMatch, SoftMatch, AdaMatch.

weak_logits [N, K] are the teacher's logits on the weak views of this process's pseudo samples. Each call uses the
`RunningMeans` of its method and updates them by one step. Only `fairness` has a gradient, to the student's logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast.training.running_means import RunningMeans


def flexmatch_thresholds(weak_logits: Tensor, means: RunningMeans, threshold: float) -> Tensor:
    """The threshold of each class, float32 [K]: threshold beta / (2 - beta), beta = s / max(max s, 1 - sum s).

    s: for each class, the share of all samples predicted as that class with a confidence of at least `threshold`, over the
    steps before this one (Zhang et al. 2021, arXiv:2110.08263, sections 3.1 to 3.3). The paper counts each image's last
    prediction; the stream of pseudo samples has no end, so s is a running mean. It starts at 0, where every sample counts.
    """
    confidence, labels = weak_logits.softmax(1).max(1)
    learned = F.one_hot(labels, weak_logits.shape[1]) * (confidence >= threshold)[:, None]
    step, _ = means.of_step(learned)
    share = means.values.get("learned", torch.zeros_like(step))
    means.update("learned", step, start=0.0)
    beta = share / torch.maximum(share.max(), 1 - share.sum())
    return (threshold * beta / (2 - beta)).float()


def freematch_thresholds(weak_logits: Tensor, means: RunningMeans) -> Tensor:
    """The threshold of each class, float32 [K]: t m / max m, with t and m the running means of the confidence and of p_w.

    Wang et al. 2023, arXiv:2205.07246, self-adaptive thresholding; both start at 1 / K. Also updates the shares of the
    predicted labels, which `fairness` reads.
    """
    num_classes = weak_logits.shape[1]
    p = weak_logits.softmax(1)
    confidence, labels = p.max(1)
    seen = torch.cat([p, F.one_hot(labels, num_classes), confidence[:, None]], 1)
    step, _ = means.of_step(seen)
    start = 1 / num_classes
    mean = means.update("predicted classes", step[:num_classes], start)
    means.update("labels", step[num_classes:-1], start)
    confidence = means.update("confidence", step[-1], start)
    return (confidence * mean / mean.max()).float()


def fairness(student_logits: Tensor, counts: Tensor, means: RunningMeans) -> Tensor:
    """FreeMatch's fairness loss, a scalar to minimize: sum over classes of a log b.

    a = normalize(m / h), with m and h the running means of p_w and of its labels. b = normalize(m_s / h_s), with m_s and h_s
    the means of p_s and of its labels over this step's samples that count. The ratio of a class that is empty in h or h_s is 0
    (Wang et al. 2023, arXiv:2205.07246, self-adaptive fairness). student_logits [N, K], counts bool [N]. The loss is 0 if no
    sample counts. With several processes, its gradient is that of the loss over all samples, scaled by all samples / own
    samples: this cancels the weight of this process's share in the mean over processes.
    """
    p = student_logits.double().softmax(1)
    kept = counts.double()[:, None]
    labels = F.one_hot(p.argmax(1), p.shape[1])
    mine = (p * kept).sum(0)
    sums = torch.stack([mine.detach(), (labels * kept).sum(0), torch.ones_like(mine) * len(p)])
    everyone, histogram, number = means.group.sum(sums)
    # Only this process's part has a gradient.
    b = _fair(mine + (everyone - mine.detach()), histogram)
    a = _fair(means.values["predicted classes"], means.values["labels"])
    loss = (a * (b + 1e-12).log()).sum() * (histogram.sum() > 0)
    gradient = (loss - loss.detach()) * (number[0] / len(p))
    return (loss.detach() + gradient).to(student_logits.dtype)


def _fair(mean: Tensor, histogram: Tensor) -> Tensor:
    """normalize(mean / histogram), with 0 for the histogram's empty classes."""
    ratio = mean * torch.where(histogram > 0, 1 / histogram, 0.0)
    return ratio / ratio.sum().clamp_min(1e-12)


def softmatch_weights(weak_logits: Tensor, means: RunningMeans) -> Tensor:
    """The weight of each sample, float32 [N]: exp(-min(c - m, 0)^2 / (2 (sigma / 2)^2)), with c = max p_w its confidence.

    m, sigma^2: running mean and variance of c, which start at 1 / K and 1 (Chen et al. 2023, arXiv:2301.10921, section 3.2;
    sigma is halved as in the authors' code).
    """
    confidence = weak_logits.softmax(1).amax(1)
    moments, number = means.of_step(torch.stack([confidence, confidence.double().square()], 1))
    spread = (moments[1] - moments[0].square()).clamp_min(0) * number / (number - 1)
    mean = means.update("confidence", moments[0], 1 / weak_logits.shape[1])
    variance = means.update("variance of confidence", spread, 1.0)
    below = (confidence - mean).clamp_max(0)
    return (-below.square() / (2 * variance / 4)).exp().float()


def adamatch_thresholds(labelled_logits: Tensor, means: RunningMeans, threshold: float) -> Tensor:
    """The same threshold for every class, float32 [K]: `threshold` times the mean confidence on this step's labelled images.

    labelled_logits [B, K]. Berthelot et al. 2022, arXiv:2106.04732, section 3.2, relative confidence threshold.
    """
    confidence, _ = means.of_step(labelled_logits.softmax(1).amax(1))
    return (threshold * confidence).float().expand(labelled_logits.shape[1]).contiguous()
