"""USB's losses and train step, as the benchmarks call them, against ours."""

from __future__ import annotations

from dataclasses import replace

import eager_loop
import pytest
import torch
import torch.nn.functional as F
import usb

from ptgm_fast.config import with_method
from ptgm_fast.kernels import consistency
from ptgm_fast.training.adaptive import (
    adamatch_thresholds,
    fairness,
    flexmatch_thresholds,
    freematch_thresholds,
    softmatch_weights,
)
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.running_means import RunningMeans, align


@pytest.fixture(scope="module", autouse=True)
def semilearn():
    return usb.semilearn_or_skip()


@pytest.fixture
def logits():
    torch.manual_seed(0)
    weak, strong = 2 * torch.randn(2, 48, 10)
    weak[::2, 3] += 6
    return weak, strong.requires_grad_()


@pytest.mark.parametrize("method", ["uda", "fixmatch"])
def test_loss_has_our_gradient(logits, method):
    weak, strong = logits
    theirs = usb.unlabelled_loss(method, 0.4, 0.8)(weak, strong)
    ours = consistency(
        weak, strong, method=method, temperature=0.4 if method == "uda" else 1.0, threshold=0.8
    )
    # Cross-entropy against the divergence: apart by the target's entropy, which has no gradient.
    entropy = torch.zeros(len(weak))
    if method == "uda":
        target = (weak / 0.4).softmax(1)
        mask = weak.softmax(1).amax(1) >= 0.8
        entropy = -(target * target.log()).sum(1) * mask
    torch.testing.assert_close(theirs, (ours + entropy).mean(), rtol=1e-5, atol=1e-6)
    a, b = (torch.autograd.grad(loss, strong)[0] for loss in (theirs, ours.mean()))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert b.abs().max() > 1e-3


@pytest.mark.parametrize("method", ["uda", "fixmatch"])
def test_train_step_is_our_loss_without_sharpening(task, logits, method):
    """On given logits: cross-entropy and lambda times the consistency loss at T = 1."""
    config = with_method(task.config, f"pp+{method}")
    made = usb.algorithm(task.new_network(), config.training, config.p_ssl)
    labelled = torch.randn(16, 10, requires_grad=True)
    weak, strong = logits
    made.model = lambda inputs: {
        "logits": torch.cat([labelled, weak, strong]),
        "feat": torch.zeros(len(labelled) + 2 * len(weak), 1),
    }
    images, labels = torch.zeros(16, 1), torch.arange(16) % 10
    outputs, log = made.train_step(images, labels, torch.zeros(48, 1), torch.zeros(48, 1))
    pssl = config.p_ssl
    ours = (
        F.cross_entropy(labelled, labels)
        + pssl.weight
        * consistency(weak, strong, method=method, temperature=1.0, threshold=pssl.threshold).mean()
    )
    found = torch.autograd.grad(outputs["loss"], (labelled, strong))
    for a, b in zip(found, torch.autograd.grad(ours, (labelled, strong)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert 0.3 < log["train/util_ratio"] < 0.9


def test_its_loop_trains_the_network(task):
    config = with_method(task.config, "pp+uda")
    changed = replace(task, config=config)
    loop = eager_loop.PseudoSemiSupervisedLoop(
        changed, eager_loop.SourcePair(changed), task.new_network()
    )
    made = usb.algorithm(task.new_network(), config.training, config.p_ssl)
    before = made.model.network.heads["target"].weight.detach().clone()
    batches = [loop.batch() for _ in range(5)]
    usb.train(
        made,
        [{"x_lb": b.views, "y_lb": b.labels} for b in batches],
        [{"x_ulb_w": b.weak, "x_ulb_s": b.strong} for b in batches],
    )
    assert made.it == 5
    assert not torch.equal(made.model.network.heads["target"].weight, before)
    # Its average is what its evaluation uses.
    assert set(made.ema.shadow) == {n for n, _ in made.model.named_parameters()}


@pytest.mark.parametrize("method", ["flexmatch", "freematch", "softmatch", "adamatch"])
def test_adaptive_rules_are_ours(method):
    """Over several steps, on probabilities: alignment, then what counts and how much; of FlexMatch from one state on."""
    decay, threshold, num_classes = 0.8, 0.8, 10
    rule, alignment = usb.adaptive(method, num_classes, decay=decay, threshold=threshold)
    means, least = RunningMeans(decay, ProcessGroup()), []
    torch.manual_seed(0)
    for step, scale in enumerate((1, 5, 5, 0.5)):
        weak, labelled = (
            scale * (torch.randn(n, num_classes) + torch.linspace(1, 0, num_classes))
            for n in (64, 20)
        )
        aligned = weak
        p, q = weak.softmax(1), labelled.softmax(1)
        if alignment:
            p = alignment(p, q)
            aligned = align(weak, means, labelled if method == "adamatch" else None)
            if method == "adamatch" and not step:
                # Theirs begins with equal shares, ours with the first step's.
                means.values["predicted of labelled"] = alignment.target.double()
                aligned = weak + ((alignment.target + 1e-6) / (alignment.mean + 1e-6)).log()
        theirs = rule(p, q)
        if method == "softmatch":
            ours = softmatch_weights(aligned, means)
        else:
            if method == "flexmatch":
                thresholds = flexmatch_thresholds(aligned, means, threshold)
                means.values["learned"] = rule.shares
            elif method == "freematch":
                thresholds = freematch_thresholds(aligned, means)
            else:
                thresholds = adamatch_thresholds(labelled, means, threshold)
            confidence, labels = aligned.softmax(1).max(1)
            ours = (confidence >= thresholds[labels]).float()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        least.append(theirs.min().item())
    assert min(least) < 1


def test_fairness_is_ours():
    entropy_loss = usb.freematch_entropy_loss()
    torch.manual_seed(0)
    student = torch.randn(48, 10, requires_grad=True)
    counts = torch.arange(48) % 3 > 0
    means = RunningMeans(0.9, ProcessGroup())
    freematch_thresholds(2 * torch.randn(48, 10), means)
    theirs, _ = entropy_loss(
        counts, student, means.values["predicted classes"].float(), means.values["labels"].float()
    )
    ours = fairness(student, counts, means)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    a, b = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
