"""The losses on pseudo samples: what each P-SSL method asks of the target network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.training.pssl_options import TWO_VIEWS, PSSLOptions


def unlabelled_loss(
    options: PSSLOptions,
    method: str,
    student_logits: Tensor,
    weak_logits: Tensor | None,
    soft_labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """A method's mean loss over the pseudo samples and the share of samples that count (the mask rate), scalars.

    student_logits: the target head [N, K_t] on the view that the student sees, the strong one if there is one; for ``source-head``
    the source head [N, K_s]. weak_logits [N, K_t]: the teacher's prediction of the weak view, for `TWO_VIEWS`; takes no
    gradient. soft_labels q [N, K_s]: what the samples were generated for; ``source-head`` is CE(softmax(source head), q).
    ``mean-teacher`` is ``mse`` towards the average of the weights (Tarvainen and Valpola 2017, arXiv:1703.01780, section 2).
    The other definitions are those of `kernels.consistency` and `kernels.pseudo_label`; ``entropy`` is the mean of
    H(p) (Grandvalet and Bengio 2004, eq. 4).
    """
    if method in TWO_VIEWS:
        assert weak_logits is not None
        thresholded = method in ("uda", "fixmatch")
        loss = kernels.consistency(
            weak_logits,
            student_logits,
            method="mse" if method == "mean-teacher" else method,
            temperature=options.temperature if method == "uda" else 1.0,
            threshold=options.threshold if thresholded else 0.0,
        ).mean()
        confidence = kernels.pseudo_label(
            weak_logits, threshold=options.threshold if thresholded else 0.0
        )
        return loss, confidence.mask.float().mean()
    everything = torch.ones((), dtype=torch.float32, device=student_logits.device)
    if method == "source-head":
        return F.cross_entropy(student_logits, soft_labels), everything
    if method == "entropy":
        log_p = F.log_softmax(student_logits, 1)
        return -(log_p.exp() * log_p).sum(1).mean(), everything
    pseudo = kernels.pseudo_label(student_logits.detach(), threshold=options.threshold)
    mask = pseudo.mask.float()
    return (
        F.cross_entropy(student_logits, pseudo.labels, reduction="none") * mask
    ).mean(), mask.mean()
