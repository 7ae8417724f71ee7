"""A target network with named heads on one feature extractor, whatever the architecture."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ptgm_fast.errors import UserError


class TargetNetwork(nn.Module):
    """A classifier whose last Linear layer is replaced by named heads over the same features.

    `features(x)` [N, C, H, W] -> [N, D] is the input of the original head; `heads[name]` maps it to logits.
    `forward(x)` gives the logits of the head ``target``. Heads come and go between stages (the source head
    of pseudo pre-training stays for the source-head loss and distillation); the extractor's weights stay.
    """

    def __init__(self, network: nn.Module, *, num_classes: int, name: str = "network") -> None:
        """network: maps images to [N, num_classes] through a final `nn.Linear`, which is taken off.

        Raises UserError if there is no Linear layer with `num_classes` outputs.
        """
        super().__init__()
        self.head_path, head = _find_head(network, num_classes, name)
        self.num_features = head.in_features
        _set_submodule(network, self.head_path, nn.Identity())
        self.network = network
        self.heads = nn.ModuleDict()

    def set_head(self, name: str, num_classes: int) -> nn.Linear:
        """Give the head `name` fresh weights (PyTorch's default initialisation, from the global generator)."""
        device = next(self.network.parameters()).device
        head = nn.Linear(self.num_features, num_classes, device=device)
        self.heads[name] = head
        return head

    def features(self, images: Tensor) -> Tensor:
        return self.network(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.heads["target"](self.network(images))

    def export_state(self) -> dict[str, Tensor]:
        """The weights under the original architecture's own names, the head ``target`` in its place.

        So `timm.create_model(NAME, num_classes=K)` and the like load what a run saved.
        """
        state = dict(self.network.state_dict())
        for key, value in self.heads["target"].state_dict().items():
            state[f"{self.head_path}.{key}"] = value
        return state

    def load_exported(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `export_state`; the head ``target`` must exist with the right number of classes."""
        prefix = f"{self.head_path}."
        self.heads["target"].load_state_dict(
            {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        )
        self.network.load_state_dict({k: v for k, v in state.items() if not k.startswith(prefix)})


def _find_head(network: nn.Module, num_classes: int, name: str) -> tuple[str, nn.Linear]:
    found = [
        (path, module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not found:
        raise UserError(
            f"{name} has no Linear layer with {num_classes} outputs; a target network must end in one "
            "(torch.nn.Linear), so that its head can be exchanged between stages"
        )
    path, head = found[-1]
    if not path:
        raise UserError(
            f"{name} is a bare Linear layer; a target network needs a feature extractor before its head"
        )
    return path, head


def _set_submodule(module: nn.Module, path: str, value: nn.Module) -> None:
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, value)
