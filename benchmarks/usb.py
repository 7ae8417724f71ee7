"""USB's package (`semilearn`, Wang et al. 2022, arXiv:2208.07204) as a peer: its losses, its train step, its trainer.

Everything that its algorithms compute can run on a CPU. `semilearn.Trainer` cannot, since its constructor calls
`torch.cuda.set_device`, nor can the hooks of `AlgorithmBase` that need CUDA (timer: CUDA events; evaluation: `.cuda()`).
These hooks are left out, as is the one that writes checkpoints, and batches are not moved to a device. Its loop
(`AlgorithmBase.train`, which USB's own `train.py` calls), its `train_step`, losses, optimizer, schedule and weight average
run unchanged. With `use_hard_label=False` its train steps pass probabilities (`softmax=False`), so the
temperature T has no effect in them: they are compared with ours at T = 1, and its losses, through its hooks, at any T.
"""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptgm_fast.kernels import consistency
from ptgm_fast.models import TargetNetwork
from ptgm_fast.training.options import TargetOptions
from ptgm_fast.training.pssl_options import PSSLOptions

CHECKOUT = Path(__file__).resolve().parent.parent
HOW = "install it with pip install 'ptgm-fast[usb]', on Python 3.11 or 3.12"


def semilearn_or_skip() -> ModuleType:
    """Import the package, or skip the test with the reason."""
    # It imports transformers, which looks for a package `kernels` and would find the checkout's folder of that name.
    kept = sys.path[:]
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != CHECKOUT]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("semilearn")
    except ImportError as error:
        pytest.skip(f"semilearn cannot be imported ({error}); {HOW}")
    finally:
        sys.path[:] = kept


def unlabelled_loss(method: str, temperature: float, threshold: float) -> Any:
    """semilearn's loss on unlabelled data: (weak logits, strong logits) -> mean loss, by its hooks and `ConsistencyLoss`.

    Composed as in its `train_step`s, except that the hook that makes pseudo labels gets logits, so that T has an effect.
    """
    semilearn_or_skip()
    from semilearn.algorithms.hooks import FixedThresholdingHook, PseudoLabelingHook
    from semilearn.core.criterions import ConsistencyLoss

    algorithm = SimpleNamespace(p_cutoff=threshold, compute_prob=lambda x: torch.softmax(x, dim=-1))
    masking, labelling, loss = FixedThresholdingHook(), PseudoLabelingHook(), ConsistencyLoss()

    def call(weak: Tensor, strong: Tensor) -> Tensor:
        mask = masking.masking(algorithm, logits_x_ulb=weak)
        label = labelling.gen_ulb_targets(
            algorithm, logits=weak, use_hard_label=method == "fixmatch", T=temperature
        )
        return loss(strong, label, "ce", mask=mask)

    return call


def adaptive(method: str, num_classes: int, *, decay: float, threshold: float) -> tuple[Any, Any]:
    """semilearn's rule for which samples count, (p, p of labelled) -> [N], and its alignment, (p, p of labelled) -> p, or None.

    FlexMatch's rule gets as many images as a step has samples, each seen once per step; `shares` is what it recorded.
    """
    semilearn_or_skip()
    from semilearn.algorithms.adamatch.utils import AdaMatchThresholdingHook
    from semilearn.algorithms.flexmatch.utils import FlexMatchThresholdingHook
    from semilearn.algorithms.freematch.utils import FreeMatchThresholdingHook
    from semilearn.algorithms.hooks import DistAlignEMAHook
    from semilearn.algorithms.softmatch.utils import SoftMatchWeightingHook

    algorithm = SimpleNamespace(
        p_cutoff=threshold, distributed=False, world_size=1, use_quantile=False, clip_thresh=False
    )
    hooks: dict[str, Callable[[], Any]] = {
        "flexmatch": lambda: FlexMatchThresholdingHook(ulb_dest_len=64, num_classes=num_classes),
        "freematch": lambda: FreeMatchThresholdingHook(num_classes=num_classes, momentum=decay),
        "softmatch": lambda: SoftMatchWeightingHook(num_classes=num_classes, momentum=decay),
        "adamatch": lambda: AdaMatchThresholdingHook(),
    }
    hook = hooks[method]()

    def rule(p: Tensor, p_labelled: Tensor) -> Tensor:
        named: dict[str, Any] = {"softmax_x_ulb": False}
        if method == "adamatch":
            named |= {"logits_x_lb": p_labelled, "softmax_x_lb": False}
        if method == "flexmatch":
            named["idx_ulb"] = torch.arange(len(p))
        counts: Tensor = hook.masking(algorithm, logits_x_ulb=p, **named)
        if method == "flexmatch":
            seen = [(hook.selected_label == k).double().mean() for k in range(num_classes)]
            rule.shares = torch.stack(seen)  # type: ignore[attr-defined]
        return counts

    if method not in ("softmatch", "adamatch"):
        return rule, None
    kind = "uniform" if method == "softmatch" else "model"
    aligning = DistAlignEMAHook(num_classes=num_classes, momentum=decay, p_target_type=kind)

    def alignment(p: Tensor, p_labelled: Tensor) -> Tensor:
        aligned: Tensor = aligning.dist_align(algorithm, p, p_labelled)
        alignment.target, alignment.mean = aligning.p_target, aligning.p_model  # type: ignore[attr-defined]
        return aligned

    return rule, alignment


def freematch_entropy_loss() -> Any:
    """semilearn's fairness loss of FreeMatch: (mask, student logits, mean prediction, histogram) -> (loss, _)."""
    semilearn_or_skip()
    from semilearn.algorithms.freematch.freematch import entropy_loss

    return entropy_loss


def assert_same_loss(
    method: str, weak: Tensor, strong: Tensor, temperature: float, threshold: float
) -> None:
    """Assert that the gradient of the mean loss equals that of `kernels.consistency` to 1e-5.

    The losses themselves differ by the entropy of uda's targets: USB uses the cross-entropy, we use the divergence.
    """
    strong = strong.detach().requires_grad_()
    named: dict[str, Any] = {"temperature": temperature} if method == "uda" else {}
    ours = consistency(weak, strong, method=method, threshold=threshold, **named)
    losses = (unlabelled_loss(method, temperature, threshold)(weak, strong), ours.mean())
    theirs, expected = (torch.autograd.grad(loss, strong)[0] for loss in losses)
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5 / len(weak))
    assert expected.abs().max() > 0.01 / len(weak)


class TwoOutputs(nn.Module):
    """A target network as USB's algorithms expect one: logits and features by name."""

    def __init__(self, network: TargetNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.network.features(images)
        return {"logits": self.network.heads["target"](features), "feat": features}


def algorithm(network: TargetNetwork, options: TargetOptions, pssl: PSSLOptions) -> Any:
    """USB's algorithm `pssl.method` (uda or fixmatch) that trains `network`, on a CPU; see the module's docstring."""
    semilearn = semilearn_or_skip()
    from semilearn.core import hooks

    without = (hooks.TimerHook, hooks.EvaluationHook, hooks.CheckpointHook)
    config = semilearn.get_config(
        {
            "algorithm": pssl.method,
            "dataset": "none",
            "num_classes": network.heads["target"].out_features,
            "epoch": 1,
            "num_train_iter": options.steps,
            "num_log_iter": options.log_every,
            "num_eval_iter": 0,
            "batch_size": options.batch_size,
            "ulb_loss_ratio": pssl.weight,
            "ema_m": options.ema_decay,
            "optim": "SGD",
            "lr": options.lr,
            "momentum": options.momentum,
            "weight_decay": options.weight_decay,
            "p_cutoff": pssl.threshold,
            "T": pssl.temperature,
            "distributed": False,
            "world_size": 1,
            "rank": 0,
        }
    )

    class OnCPU(semilearn.algorithms.name2alg[pssl.method]):  # type: ignore[name-defined]
        def register_hook(self, hook: Any, *settings: Any, **named: Any) -> None:
            if not isinstance(hook, without):
                super().register_hook(hook, *settings, **named)

        def process_batch(self, input_args: Any = None, **batch: Any) -> dict[str, Any]:
            return batch

    def build(num_classes: int, **unused: Any) -> nn.Module:
        return TwoOutputs(copy.deepcopy(network))

    with warnings.catch_warnings():
        # About torch.cuda.amp's old names.
        warnings.simplefilter("ignore")
        made = OnCPU(config, build)
    made.print_fn = lambda text: None
    return made


def train(made: Any, labelled: Iterable[Any], unlabelled: Iterable[Any]) -> Any:
    """Run USB's own loop over pairs of batches {x_lb, y_lb}, {x_ulb_w, x_ulb_s}."""
    made.loader_dict = {"train_lb": labelled, "train_ulb": unlabelled}
    made.train()
    return made


def train_on(
    made: Any,
    batches: Iterable[Any],
    losses: list[float],
    then: Callable[[], None] = lambda: None,
) -> Any:
    """`train` over batches with `views`, `labels`, `weak` and `strong`, made one at a time.

    losses: the steps' losses are appended here. then: called after each step.
    """
    unlabelled: list[dict[str, Tensor]] = []

    def first_half() -> Iterator[dict[str, Tensor]]:
        # USB takes a labelled and then an unlabelled batch: both come from one batch of ours.
        for batch in batches:
            unlabelled.append({"x_ulb_w": batch.weak, "x_ulb_s": batch.strong})
            yield {"x_lb": batch.views, "y_lb": batch.labels}
            losses.append(made.log_dict["train/total_loss"])
            then()

    def second_half() -> Iterator[dict[str, Tensor]]:
        while True:
            yield unlabelled.pop()

    return train(made, first_half(), second_half())


def averaged(made: Any) -> TargetNetwork:
    """The network that USB evaluates: the average of the weights, with the trained network's statistics."""
    made.model.eval()
    made.ema.apply_shadow()
    found = copy.deepcopy(made.model.network)
    made.ema.restore()
    made.model.train()
    return found
