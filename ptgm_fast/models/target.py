"""A target network with named heads on one feature extractor, whatever the architecture."""

from __future__ import annotations

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
        network.set_submodule(self.head_path, nn.Identity())
        self.network = network
        self.heads = nn.ModuleDict()

    def set_head(self, name: str, num_classes: int) -> nn.Linear:
        """Give the head `name` fresh weights (PyTorch's default initialization, from the global generator)."""
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
