"""The P-SSL losses against formulas written here, and distillation."""

import pytest
import torch
import torch.nn.functional as F

from ptgm_fast.training.distillation import distillation_loss
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.options import DistillationOptions
from ptgm_fast.training.p_ssl import overlap
from ptgm_fast.training.pssl_options import PREDICTED, PSSL_METHODS, PSSLOptions
from ptgm_fast.training.running_means import RunningMeans, align
from ptgm_fast.training.unlabelled import UnlabelledLoss

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = (3 * torch.randn(40, 5, generator=GENERATOR)).requires_grad_()
WEAK = 3 * torch.randn(40, 5, generator=GENERATOR)
LABELLED = 4 * torch.randn(30, 5, generator=GENERATOR)
SOFT = torch.randn(40, 5, generator=GENERATOR).softmax(1)
SOFT[0] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])


def loss_of(method: str, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    options = PSSLOptions(method=method, **settings)  # type: ignore[arg-type]
    return UnlabelledLoss(method, options, ProcessGroup())(STUDENT, WEAK, SOFT, LABELLED)


def distilled(temperature: float) -> torch.Tensor:
    """T^2 KL(q^(1/T) / sum || softmax(s / T)) of the soft labels q, one of which has a class of probability 0."""
    powers = SOFT ** (1 / temperature)
    q, p = powers / powers.sum(1, keepdim=True), (STUDENT / temperature).softmax(1)
    return temperature**2 * torch.where(q > 0, q * (q.log() - p.log()), 0.0).sum(1)


def expected(
    method: str, temperature: float, threshold: float, weak: torch.Tensor = WEAK
) -> torch.Tensor:
    p, q = STUDENT.softmax(1), weak.softmax(1)
    confident = (q.max(1).values >= threshold).float()
    own = (p.max(1).values >= threshold).float()
    return {
        "uda": confident
        * F.kl_div(p.log(), (weak / temperature).softmax(1), reduction="none").sum(1),
        "fixmatch": confident * -p.log().gather(1, q.argmax(1, keepdim=True))[:, 0],
        "soft-pseudo-label": F.kl_div(p.log(), q, reduction="none").sum(1),
        "mse": (q - p).square().mean(1),
        "feature-mse": (STUDENT - weak).square().mean(1),
        "mean-teacher": (q - p).square().mean(1),
        "pseudo-label": own * -p.log().gather(1, p.argmax(1, keepdim=True))[:, 0],
        "entropy": -(p * p.log()).sum(1),
        "source-head": distilled(2.0),
    }[method]


# The others, by their running means: test_adaptive.py.
METHODS = set(PSSL_METHODS) - {"flexmatch", "freematch", "softmatch", "adamatch"}


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(("temperature", "threshold"), [(0.4, 0.8), (1.0, 0.0), (2.0, 0.95)])
def test_losses_and_gradients_are_their_formulas(
    method: str, temperature: float, threshold: float
) -> None:
    ours, _ = loss_of(method, temperature=temperature, threshold=threshold)
    theirs = expected(method, temperature, threshold).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    (our_gradient,) = torch.autograd.grad(ours, STUDENT)
    (their_gradient,) = torch.autograd.grad(theirs, STUDENT)
    assert torch.allclose(our_gradient, their_gradient, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_source_head_distils_the_soft_label_at_its_temperature(temperature: float) -> None:
    options = PSSLOptions(method="source-head", source_temperature=temperature)
    ours, rate = UnlabelledLoss("source-head", options, ProcessGroup())(
        STUDENT, None, SOFT, LABELLED
    )
    assert rate.item() == 1
    theirs = distilled(temperature).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    (our_gradient,) = torch.autograd.grad(ours, STUDENT)
    (their_gradient,) = torch.autograd.grad(theirs, STUDENT)
    assert torch.allclose(our_gradient, their_gradient, atol=1e-6)
    # At T = 1 the gradient is that of the cross-entropy with the soft label.
    if temperature == 1:
        (of_cross_entropy,) = torch.autograd.grad(F.cross_entropy(STUDENT, SOFT), STUDENT)
        assert torch.allclose(our_gradient, of_cross_entropy, atol=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_samples_that_are_not_kept_do_not_count(method: str) -> None:
    options = PSSLOptions(method=method, threshold=0.5)  # type: ignore[arg-type]
    kept = torch.arange(40) % 3 > 0
    loss = UnlabelledLoss(method, options, ProcessGroup())
    ours, rate = loss(STUDENT, WEAK, SOFT, LABELLED, kept)
    each = expected(method, 0.4, 0.5)
    assert ours.item() == pytest.approx((each * kept).mean().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(ours, STUDENT)
    assert not gradient[~kept].any()
    assert 0 < rate.item() <= kept.float().mean().item()
    nothing, none = loss(STUDENT, WEAK, SOFT, LABELLED, torch.zeros_like(kept))
    assert (nothing.item(), none.item()) == (0, 0)


def test_overlap_of_soft_labels() -> None:
    asked = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = torch.tensor([[0.5, 0.5, 0.0], [0.7, 0.1, 0.2], [0.6, 0.4, 0.0]])
    torch.testing.assert_close(overlap(asked, found), torch.tensor([1.0, 0.7, 0.0]))


def test_mask_rate_is_the_share_of_confident_samples() -> None:
    _, rate = loss_of("uda", threshold=0.8)
    assert rate.item() == pytest.approx(
        (WEAK.softmax(1).max(1).values >= 0.8).float().mean().item()
    )
    _, rate = loss_of("mse")
    assert rate.item() == 1.0


@pytest.mark.parametrize("target", ["uniform", "labelled"])
def test_aligned_predictions_are_their_formula(target: str) -> None:
    """p target / mean, renormalized, with running means that start with the first step's."""
    means = RunningMeans(0.9, ProcessGroup())
    mean, share = torch.zeros(5), torch.full((5,), 0.2)
    for step in range(4):
        weak, labelled = WEAK.roll(step, 1) + step, LABELLED.roll(step, 1) * (step + 1)
        p = weak.softmax(1)
        keep = 0.9 if step else 0.0
        mean = keep * mean + (1 - keep) * p.mean(0)
        if target == "labelled":
            share = keep * share + (1 - keep) * labelled.softmax(1).mean(0)
        expected = p * share / mean
        expected /= expected.sum(1, keepdim=True)
        found = align(weak, means, labelled if target == "labelled" else None).softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - p).abs().max() > 0.01


def test_alignment_draws_a_collapsed_prediction_to_the_target() -> None:
    """Nearly everything is predicted as one class; after alignment, less than half is."""
    torch.manual_seed(0)
    weak = torch.randn(4000, 5) + torch.tensor([6.0, 0, 0, 0, 0])
    assert (weak.argmax(1) == 0).float().mean() > 0.99
    aligned = align(weak, RunningMeans(0.0, ProcessGroup()), None).softmax(1)
    shares = aligned.argmax(1).bincount(minlength=5) / len(weak)
    assert shares[0] < 0.5
    assert shares[1:].min() > 0.1


@pytest.mark.parametrize("method", sorted(PREDICTED & METHODS))
def test_every_method_learns_the_aligned_predictions(method: str) -> None:
    settings = {"alignment": "labelled", "threshold": 0.5, "temperature": 0.7}
    ours, rate = loss_of(method, **settings)  # type: ignore[arg-type]
    aligned = WEAK.softmax(1) * LABELLED.softmax(1).mean(0) / WEAK.softmax(1).mean(0)
    aligned /= aligned.sum(1, keepdim=True)
    theirs = expected(method, 0.7, 0.5, aligned.log()).mean()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    if method in ("uda", "fixmatch"):
        assert rate.item() == pytest.approx((aligned.amax(1) >= 0.5).float().mean().item())


def test_distillation_is_its_formula() -> None:
    side = torch.randn(6, 5, requires_grad=True)
    source = torch.randn(6, 5, requires_grad=True)
    options = DistillationOptions(
        temperature=4.0, soft_target_weight=0.5, logit_matching_weight=2.0
    )
    soft = distillation_loss(side, source, "soft-target", options)
    p, q = (source / 4).softmax(1), (side / 4).softmax(1)
    assert soft.item() == pytest.approx(
        (0.5 * 16 * (p * (p / q).log()).sum(1).mean()).item(), rel=1e-5
    )
    match = distillation_loss(side, source, "logit-matching", options)
    assert match.item() == pytest.approx((2.0 * (side - source).square().mean()).item(), rel=1e-5)
    assert torch.autograd.grad(soft, [side, source], allow_unused=True)[1] is None
