"""Finding which layers of a network are its heads, from what it returns, and replacing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError

# What may follow the heads: after any of these, the probabilities are still those of the heads' logits.
_ENDINGS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits: logits,
    lambda logits: logits.log_softmax(1),
    lambda logits: logits.softmax(1),
)


@dataclass(frozen=True)
class Place:
    """Where a head was: all names it is registered under, and its shape."""

    paths: tuple[str, ...]
    in_features: int
    bias: bool
    is_convolution: bool

    def fresh(self, num_classes: int, device: torch.device) -> nn.Linear:
        """A head for this place, with PyTorch's default initialization."""
        return nn.Linear(self.in_features, num_classes, bias=self.bias, device=device)


class Tap(nn.Module):
    """Replaces a head, and keeps its input until it is taken.

    It returns zeros in the shape of the head's output, so that what follows still works; its result is not used. Spatial
    feature maps are passed on instead: the pooling that follows, meant for a map of logits, then pools the features.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self._seen: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[2:].numel() != 1:
            return features
        self._seen = features
        return features.new_zeros(len(features), self.num_classes, *features.shape[2:])

    def take(self) -> Tensor | None:
        """The features [N, D]; None if they were a spatial map."""
        seen, self._seen = self._seen, None
        return seen if seen is None or seen.dim() == 2 else seen.flatten(1)


class MeanHead(nn.ModuleList):
    """The mean of several Linear layers, each over its own part of the features [N, D_1 + D_2 + ...]."""

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split([layer.in_features for layer in self], dim=1)
        logits = [layer(part) for layer, part in zip(self, parts, strict=True)]
        return torch.stack(logits).mean(0)


def find_heads(
    network: nn.Module, num_classes: int, images: Tensor | None, *, name: str
) -> tuple[Place, ...]:
    """The layer whose output, or the two layers whose outputs' mean, `network` returns in evaluation, as logits or their
    (log-)softmax.

    A head is a Linear layer or a 1x1 convolution with `num_classes` outputs. If the returned values do not tell, or
    without images, it is the last such layer. Raises UserError if there is none, or if the network returns several
    classifications.
    """
    named: dict[nn.Module, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if _may_be_head(module, num_classes):
            named.setdefault(module, []).append(path)
    if not named:
        raise UserError(
            f"{name} has no Linear layer with {num_classes} outputs (nor a 1x1 convolution); a target network must end in "
            "one (torch.nn.Linear), so that its head can be replaced between stages"
        )
    modules = list(named)
    chosen = [modules[-1]]
    if images is not None and len(modules) > 1:
        found = _returned(network, modules, images)
        if len(found) > 1:
            listed = "; ".join(" and ".join(named[m][0] for m in heads) for heads in found)
            raise UserError(
                f"{name} returns several classifications in evaluation, from the layers {listed}. Which one to train is "
                "ambiguous: make its forward return only one of them when it is not training (in a wrapper of yours, "
                "package.module:factory)"
            )
        chosen = list(found[0]) if found else chosen
    if any("" in named[module] for module in chosen):
        raise UserError(
            f"{name} is a bare Linear layer; a target network needs a feature extractor before its head"
        )
    return tuple(_place(module, named[module]) for module in chosen)


def _may_be_head(module: nn.Module, num_classes: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return (
        isinstance(module, nn.Conv2d)
        and module.out_channels == num_classes
        and module.groups == 1
        and module.kernel_size == module.stride == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
    )


def _place(module: nn.Module, paths: list[str]) -> Place:
    convolution = isinstance(module, nn.Conv2d)
    features = module.in_channels if convolution else module.in_features
    return Place(tuple(paths), int(features), module.bias is not None, convolution)  # type: ignore[arg-type]


@torch.no_grad()
def _returned(
    network: nn.Module, modules: list[nn.Module], images: Tensor
) -> list[tuple[nn.Module, ...]]:
    """The modules, or pairs of them, that produce what the network returns, each once.

    Each module's output is replaced by its own random numbers, which are then searched for in what the network returns.
    So initial weights that are zero, or equal, do not hide where an output comes from.
    """
    outputs: dict[nn.Module, Tensor] = {}
    random = torch.Generator().manual_seed(0)

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        drawn = torch.randn(output.shape, generator=random).to(output)
        outputs[module] = drawn.flatten(1) if output.shape[2:].numel() == 1 else drawn
        return drawn

    hooks = [module.register_forward_hook(replace) for module in modules]
    training = network.training
    try:
        returned = list(tensors(network.eval()(images)))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    found: dict[tuple[nn.Module, ...], None] = {}
    for tensor in returned:
        for heads in (*((m,) for m in outputs), *combinations(outputs, 2)):
            parts = [outputs[head] for head in heads]
            if any(part.shape != tensor.shape for part in parts):
                continue
            mean = torch.stack(parts).mean(0)
            if any(torch.allclose(tensor, end(mean), atol=1e-4) for end in _ENDINGS):
                found[heads] = None
    return list(found)


def tensors(returned: Any) -> Iterator[Tensor]:
    """The tensors in what a network returned: its `logits` (an attribute or a key) if there are any, else all items."""
    if isinstance(returned, Mapping):
        logits = returned.get("logits")
        returned = tuple(returned.values())
    else:
        logits = getattr(returned, "logits", None)
    if isinstance(returned, Tensor):
        yield returned
    elif logits is not None:
        yield from tensors(logits)
    elif isinstance(returned, tuple | list):
        for item in returned:
            yield from tensors(item)
