"""Checking that a run's exported weights turn the plain architecture into the network that was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.models.heads import tensors
from ptgm_fast.models.precision import exact_float32
from ptgm_fast.models.target import TargetNetwork
from ptgm_fast.models.weights import load_state

# In probability. Another order of rounding gives 1e-6; computing something else from the head, 0.1 or more.
TOLERANCE = 1e-3


@exact_float32()
def check_exported(
    network: TargetNetwork,
    plain: nn.Module,
    state: Mapping[str, Tensor],
    images: Tensor,
    *,
    name: str,
) -> None:
    """Load `state`, exported from `network`, into `plain` and compare the two on images, in evaluation mode.

    plain may return logits, their log_softmax or softmax, alone or beside other outputs. Raises UserError with the
    reason unless all probabilities agree within `TOLERANCE`. Both are left in evaluation mode.
    """
    load_state(plain, state, where=f"{name}: the exported state")
    with torch.no_grad(), torch.random.fork_rng():
        # Random numbers drawn in evaluation are the same for both.
        torch.manual_seed(0)
        expected = network.eval()(images).softmax(1)
        torch.manual_seed(0)
        returned = plain.eval()(images)
    found = [_probabilities(t) for t in class_scores(returned, expected.shape, name=name)]
    differences = [(probabilities - expected).abs().max().item() for probabilities in found]
    if any(difference <= TOLERANCE for difference in differences):
        return
    raise UserError(
        f"{name} cannot be exported: with the trained weights, the plain architecture's probabilities differ from the "
        f"trained network's (by up to {min(differences):.2g}). It must return the output of its last layer (torch.nn.Linear, "
        "or the mean of two) as logits, log_softmax or softmax, and keep everything that training changes in its state "
        "dict. Change its forward, or choose another network"
    )


def class_scores(returned: Any, shape: Sequence[int], *, name: str) -> list[Tensor]:
    """The tensors of that shape among those a network returned in evaluation. Raises UserError if there is none."""
    found = list(tensors(returned))
    if fitting := [tensor for tensor in found if tensor.shape == tuple(shape)]:
        return fitting
    given = ", ".join(str(list(tensor.shape)) for tensor in found) or "no tensor"
    raise UserError(
        f"{name} returns a {type(returned).__name__} ({given}) in evaluation, expected class scores {list(shape)}"
    )


def rehearse(network: TargetNetwork, images: Tensor) -> None:
    """Change the network as training would: one step that shrinks its logits, then scale them until they are far apart.

    Afterwards, `check_exported` reveals whatever exists only in training mode, whatever training changes besides the
    parameters, and whatever scales or bounds the logits.
    """
    features = network.train().features(images)
    torch.stack(
        [head(features).square().mean() for head in network.heads.values()]
    ).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.abs().mean() * parameter.grad.sign())
        network.zero_grad()
        spread = network.eval()(images).std(1).mean()
        for parameter in network.heads["target"].parameters():
            parameter.mul_(torch.where(spread > 0, 3 / spread, 1.0))


def _probabilities(scores: Tensor) -> Tensor:
    """The softmax of logits or of their log_softmax; probabilities are returned unchanged."""
    return scores if are_probabilities(scores) else scores.float().softmax(1)


def are_probabilities(scores: Tensor) -> bool:
    """Whether each row of [N, K] is a distribution."""
    sums = scores.float().sum(1)
    return bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
