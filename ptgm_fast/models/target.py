"""A target network with named heads on one feature extractor, whatever the architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ptgm_fast.models.heads import MeanHead, Place, Tap, find_heads
from ptgm_fast.models.weights import check_fit


class TargetNetwork(nn.Module):
    """A classifier whose head is replaced by named heads over the same features.

    `features(x)` [N, C, H, W] -> [N, D] is the input of the original head; `heads[name]` maps it to logits. Whatever the
    network computes from its head's output (log_softmax, auxiliary outputs) is ignored. If the network returns the mean
    of two heads, as timm's distilled models do, both are replaced: D is that of both together, and a named head is the
    mean of two. `forward(x)` gives the logits of the head ``target``. Heads come and go between stages (the source head
    of pseudo pre-training stays for the source-head loss and distillation); the extractor's weights stay.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        name: str = "network",
        images: Tensor | None = None,
    ) -> None:
        """network: maps images to [N, num_classes] through the heads that `find_heads` finds, which are removed.

        images: example inputs [N, C, H, W], used to tell its heads from other layers with as many outputs; without them,
        the head is the last such layer. Raises UserError as `find_heads` does.
        """
        super().__init__()
        self.places = find_heads(network, num_classes, images, name=name)
        # A tuple, so that they are not registered here: they are the network's submodules.
        self._taps = tuple(Tap(num_classes) for _ in self.places)
        for tap, place in zip(self._taps, self.places, strict=True):
            for path in place.paths:
                network.set_submodule(path, tap)
        self.network = network
        self.heads = nn.ModuleDict()

    @property
    def num_features(self) -> int:
        return sum(place.in_features for place in self.places)

    def set_head(self, name: str, num_classes: int) -> nn.Module:
        """Give the head `name` fresh weights (PyTorch's default initialization, from the global generator)."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        layers = [place.fresh(num_classes, device) for place in self.places]
        self.heads[name] = layers[0] if len(layers) == 1 else MeanHead(layers)
        return self.heads[name]

    def features(self, images: Tensor) -> Tensor:
        returned = self.network(images)
        taken = [tap.take() for tap in self._taps]
        seen = [features for features in taken if features is not None]
        if len(seen) > 1:
            return torch.cat(seen, 1)
        return seen[0] if seen else returned

    def forward(self, images: Tensor) -> Tensor:
        return self.heads["target"](self.features(images))

    def export_state(self) -> dict[str, Tensor]:
        """The weights under the original architecture's own names, the head ``target`` in its place.

        So `timm.create_model(NAME, num_classes=K)` and the like load what a run saved.
        """
        state = dict(self.network.state_dict())
        for place, key, value in self._head_tensors("target"):
            whole = value[..., None, None] if place.is_convolution and key == "weight" else value
            state |= {f"{path}.{key}": whole for path in place.paths}
        return state

    def load_exported(self, state: Mapping[str, Tensor]) -> None:
        """Load weights that `export_state` returned. Raises UserError naming the tensors that do not fit."""
        own = self.export_state()
        architecture = type(self.network).__name__
        check_fit(own, state, where="the exported state", architecture=architecture)
        for key, value in own.items():
            value.copy_(state[key])

    def _head_tensors(self, name: str) -> Iterator[tuple[Place, str, Tensor]]:
        head = self.heads[name]
        layers = head if isinstance(head, MeanHead) else [head]
        for place, layer in zip(self.places, layers, strict=True):
            for key, value in layer.state_dict().items():
                yield place, key, value
