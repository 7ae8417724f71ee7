"""The baseline of the end-to-end figures is the same method: same images, same step, same strength of views."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import agreement
import eager_loop
import eager_training
import pytest
import torch

from ptgm_fast import kernels
from ptgm_fast.config import with_method
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.optim import ExponentialMovingAverage, learning_rate
from ptgm_fast.training.options import SupervisedOptions

LAYOUTS = {"default": False, "channels-last": True}


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def pair(task, request):
    return eager_loop.SourcePair(task, channels_last=LAYOUTS[request.param])


def with_loss(task, method):
    return replace(task, config=with_method(task.config, f"pp+{method}"))


def test_images_of_labels_and_of_target_images(task, pair):
    assert agreement.assert_same_images(task, pair) <= 1e-4


@pytest.mark.parametrize("method", ["p-ssl", "uda", "fixmatch"])
def test_step_of_p_ssl(task, pair, method):
    agreement.assert_same_step(with_loss(task, method), "p-ssl", pair)


def test_step_of_pp(task, pair):
    agreement.assert_same_step(task, "pp", pair)


@pytest.mark.parametrize("distillation", ["none", "logit-matching", "soft-target"])
def test_step_of_the_supervised_stage(task, distillation):
    supervised = SupervisedOptions(distillation=distillation)
    changed = replace(task, config=task.config.model_copy(update={"supervised": supervised}))
    pair = eager_loop.SourcePair(changed, channels_last=True)
    agreement.assert_same_step(changed, "supervised", pair)


def test_a_pool_and_progressive_resolution(task):
    """The sides of all steps are ours, and a pool's images are made once and shown as often as ours."""
    pp = {"steps": 10, "batch_size": 8, "resolution": ((0.5, 0.6), (0.75, 0.85), (1.0, 1.0))}
    config = task.config.model_copy(
        update={
            "pp": task.config.pp.model_copy(update=pp),
            "synthesis": task.config.synthesis.model_copy(update={"images": "1/4"}),
        }
    )
    changed = replace(task, config=config)
    pair = eager_loop.SourcePair(changed)
    made, generate = [], pair.generator.generate
    pair.generator.generate = lambda z, *a, **k: made.append(len(z)) or generate(z, *a, **k)
    loop = eager_loop.PseudoPreTrainingLoop(changed, pair, changed.new_network())
    ours = make_stage("pp", changed, changed.new_network())
    ours.prepare()
    for step in range(10):
        views, labels = loop.batch()
        assert views.shape == ours.make_batch(step).inputs.shape
        assert len(labels) == 8
    assert sum(made) >= ours.pool.count == 20
    assert sum(made) < 10 * 8


def test_a_pool_of_p_ssl(task):
    synthesis = task.config.synthesis.model_copy(update={"images_per_target": 2})
    changed = replace(task, config=task.config.model_copy(update={"synthesis": synthesis}))
    loop = eager_loop.PseudoSemiSupervisedLoop(
        changed, eager_loop.SourcePair(changed), changed.new_network()
    )
    images = torch.cat([loop.served() for _ in range(7)])
    assert len(images.flatten(1).unique(dim=0)) <= 2 * len(changed.data.train)
    agreement.assert_same_step(changed, "p-ssl", loop.pair)


@pytest.mark.parametrize("method", ["p-ssl", "uda", "fixmatch"])
def test_another_loss_is_caught(task, monkeypatch, method):
    loop = eager_loop.PseudoSemiSupervisedLoop
    unlabelled = loop.unlabelled_loss
    monkeypatch.setattr(loop, "unlabelled_loss", lambda *a: unlabelled(*a) * 1.001)
    with pytest.raises(AssertionError, match="differs by"):
        agreement.assert_same_step(with_loss(task, method), "p-ssl", eager_loop.SourcePair(task))


def test_other_running_statistics_are_caught(task, monkeypatch):
    monkeypatch.setattr(eager_loop, "no_running_update", lambda network: nullcontext())
    with pytest.raises(AssertionError, match=r"running_\w+ differs by"):
        agreement.assert_same_step(task, "p-ssl", eager_loop.SourcePair(task))


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_views_are_as_strong(task, name):
    """The mean and the spread of many views of one digit, pixel by pixel, against ours."""
    spec = kernels.view_preset(name)
    image = task.data.train.images[:1]
    num = 3000
    torch.manual_seed(0)
    theirs = eager_loop.kornia_view(spec, (0.5,), (0.5,))(
        (image.float() / 255).repeat(num, 1, 1, 1)
    )
    ours, _ = kernels.views(image.repeat(num, 1, 1, 1), spec, seed=0)
    assert theirs.shape == ours.shape
    # Standard error of a pixel's mean is at most 0.02; brightness is defined otherwise (`kornia_view`).
    assert (theirs.mean(0) - ours.mean(0)).abs().max() < (0.08 if name == "weak" else 0.2)
    assert (theirs.std(0) - ours.std(0)).abs().max() < (0.08 if name == "weak" else 0.2)
    assert ours.std(0).max() > 0.5


def test_schedule_is_ours(task):
    config = task.config.model_copy(update={"pp": task.config.pp.model_copy(update={"steps": 600})})
    changed = replace(task, config=config)
    loop = eager_loop.PseudoPreTrainingLoop(
        changed, eager_loop.SourcePair(changed), task.new_network()
    )
    training = eager_training.Training(loop)
    theirs = []
    for _ in range(600):
        theirs.append(training.optimizer.param_groups[0]["lr"])
        training.optimizer.step()
        training.schedule.step()
    ours = [learning_rate(config.pp, step, 600) for step in range(600)]
    # torch reaches the peak one step earlier.
    assert max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) < 0.015 * config.pp.lr
    assert theirs[-1] == pytest.approx(ours[-1])


def test_both_loops_learn(task):
    pair = eager_loop.SourcePair(task, channels_last=True)
    for stage, loop in eager_loop.LOOPS.items():
        torch.manual_seed(0)
        training = eager_training.Training(loop(task, pair, task.new_network()))
        training.run(20)
        losses = torch.stack(training.losses)
        assert losses.isfinite().all()
        assert losses[-5:].mean() < losses[:5].mean(), stage
        assert training.seconds > 0


def test_average_is_ours(task):
    """Over twelve steps, as the stages average; torch's class starts from the first step's weights, not the initial ones."""
    training = eager_training.Training(
        eager_loop.PseudoSemiSupervisedLoop(task, eager_loop.SourcePair(task), task.new_network())
    )
    training.run(1)
    ours = ExponentialMovingAverage(training.loop.network, task.config.training.ema_decay)
    ours.num_updates = 1
    for _ in range(12):
        training.run(1)
        ours.update(training.loop.network)
    expected = ours.module.state_dict()
    for name, value in training.evaluated.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(
        expected["heads.target.weight"], training.loop.network.heads["target"].weight
    )


def test_what_is_not_written_out_is_refused(task):
    pair = eager_loop.SourcePair(task)
    with pytest.raises(ValueError, match="implements"):
        eager_loop.PseudoSemiSupervisedLoop(with_loss(task, "entropy"), pair, task.new_network())
    with pytest.raises(ValueError, match="do not support"):
        eager_loop.kornia_view(kernels.view_preset("rand-augment"), (0.5,), (0.5,))
