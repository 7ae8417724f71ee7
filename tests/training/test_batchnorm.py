"""The batch-norm policies of a joint step."""

import pytest
import torch

from ptgm_fast import models
from ptgm_fast.training.batchnorm import joint_features


def network(seed: int = 0) -> models.TargetNetwork:
    torch.manual_seed(seed)
    built = models.build("ptgm:resnet-small", num_classes=3, channels=1, image_size=8)
    return models.TargetNetwork(built, num_classes=3).train()


def statistics(module: torch.nn.Module) -> list[torch.Tensor]:
    return [b.clone() for name, b in module.named_buffers() if "running" in name]


LABELLED = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
PSEUDO = 3 + 2 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_concat_is_one_forward_of_both() -> None:
    a, b = network(), network()
    labelled, pseudo = joint_features(a, LABELLED, PSEUDO, "concat")
    together = b.features(torch.cat([LABELLED, PSEUDO]))
    assert torch.equal(torch.cat([labelled, pseudo]), together)
    assert all(torch.equal(x, y) for x, y in zip(statistics(a), statistics(b), strict=True))


@pytest.mark.parametrize("policy", ["split", "target-only"])
def test_pseudo_images_leave_no_trace_in_the_statistics(policy: str) -> None:
    a, b = network(), network()
    labelled, pseudo = joint_features(a, LABELLED, PSEUDO, policy)
    alone = b.features(LABELLED)
    assert torch.equal(labelled, alone)
    assert all(torch.equal(x, y) for x, y in zip(statistics(a), statistics(b), strict=True))
    if policy == "split":
        expected = network().features(PSEUDO)
    else:
        b.eval()
        expected = b.features(PSEUDO)
    assert torch.allclose(pseudo, expected, atol=1e-6)
    assert all(m.training for m in a.modules())


@pytest.mark.parametrize("policy", ["concat", "split", "target-only"])
def test_gradients_flow_through_both(policy: str) -> None:
    module = network()
    for which in (0, 1):
        module.zero_grad()
        joint_features(module, LABELLED, PSEUDO, policy)[which].square().sum().backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in module.network.parameters()
        )
