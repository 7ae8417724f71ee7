"""Networks as others write them: what is trained is what the exported file makes of the plain architecture."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptgm_fast import models
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import decoded, encoded

K = 5
IMAGES = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(3))


def prepared(build: Callable[[], nn.Module], images: Tensor = IMAGES) -> models.TargetNetwork:
    """The network as a run checks it: with both heads, changed by a step."""
    torch.manual_seed(0)
    network = models.TargetNetwork(build(), num_classes=K, images=images)
    network.set_head("target", K)
    network.set_head("source", 11)
    models.rehearse(network, images)
    return network


def check(build: Callable[[], nn.Module], images: Tensor = IMAGES) -> models.TargetNetwork:
    network = prepared(build, images)
    state = decoded(encoded(network.export_state()))
    models.check_exported(network, build(), state, images, name="network")
    return network


class Body(nn.Module):
    """A small extractor, and a forward that each network ends in its own way."""

    def __init__(self, **heads: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, 2)
        self.norm = nn.BatchNorm2d(6)
        for name, head in heads.items():
            self.add_module(name, head)

    def map(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def pooled(self, x: Tensor) -> Tensor:
        return self.map(x).mean((2, 3))


class Plain(Body):
    def __init__(self, end: Callable[[Tensor], Any] = lambda logits: logits, **kw: Any) -> None:
        super().__init__(fc=nn.Linear(6, K, **kw))
        self.end = end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.fc(self.pooled(x)))


class Convolutional(Body):
    """A head of 1x1 on the pooled map."""

    def __init__(self) -> None:
        super().__init__(fc=nn.Conv2d(6, K, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.map(x).mean((2, 3), keepdim=True)).flatten(1)


class FullyConvolutional(Convolutional):
    """The logits of every place, then their mean."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.map(x)).mean((2, 3))


class HeadBeforeItsBody(Body):
    """A hidden layer with as many outputs as classes is registered last."""

    def __init__(self) -> None:
        super().__init__(fc=nn.Linear(K, K), hidden=nn.Linear(6, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.hidden(self.pooled(x))))


class Two(Body):
    """As facebookresearch/deit: both heads' outputs in training, their mean in evaluation."""

    def __init__(self) -> None:
        super().__init__(head=nn.Linear(6, K), head_dist=nn.Linear(6, K))

    def forward(self, x: Tensor) -> Any:
        features = self.pooled(x)
        first, second = self.head(features), self.head_dist(features.square())
        return (first, second) if self.training else (first + second) / 2


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor


class Auxiliary(Body):
    """As torchvision's: an auxiliary classifier, in training only; registered last here."""

    def __init__(self) -> None:
        super().__init__(fc=nn.Linear(6, K), aux=nn.Linear(6, K))

    def forward(self, x: Tensor) -> Any:
        features = self.pooled(x)
        logits = self.fc(features)
        return Outputs(logits, self.aux(features)) if self.training else logits


class SharedNames(Plain):
    """Head and norm are registered under second names, and used under them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.norm, self.fc)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](F.relu(self.layers[0](self.conv(x))).mean((2, 3)))


FINE: dict[str, Callable[[], nn.Module]] = {
    "logits": Plain,
    "log_softmax": lambda: Plain(lambda z: F.log_softmax(z, dim=1)),
    "softmax": lambda: Plain(lambda z: z.softmax(1)),
    "no bias": lambda: Plain(bias=False),
    "a tuple": lambda: Plain(lambda z: (z, z.new_zeros(3))),
    "a dict": lambda: Plain(lambda z: {"loss": None, "scores": z}),
    "logits among others": lambda: Plain(lambda z: {"aux": z.tanh(), "logits": z}),
    "convolution": Convolutional,
    "fully convolutional": FullyConvolutional,
    "head registered first": HeadBeforeItsBody,
    "two heads": Two,
    "auxiliary": Auxiliary,
    "two names": SharedNames,
}


@pytest.mark.parametrize("name", FINE)
def test_the_exported_file_is_the_trained_network(name: str) -> None:
    network = check(FINE[name])
    again = models.TargetNetwork(FINE[name](), num_classes=K, images=IMAGES).eval()
    again.set_head("target", K)
    again.load_exported(network.export_state())
    assert torch.equal(again(IMAGES), network(IMAGES))


def test_which_layer_is_the_head() -> None:
    assert [p.paths for p in prepared(HeadBeforeItsBody).places] == [("fc",)]
    assert [p.paths for p in prepared(Auxiliary).places] == [("fc",)]
    assert [p.paths for p in prepared(Two).places] == [("head",), ("head_dist",)]
    assert [p.paths for p in prepared(SharedNames).places] == [("fc", "layers.1")]


def test_two_heads_are_trained_as_their_mean() -> None:
    network = check(Two)
    plain = Two().eval()
    plain.load_state_dict(network.export_state())
    assert torch.allclose(plain(IMAGES), network(IMAGES), atol=1e-5)
    network.train()
    F.cross_entropy(network(IMAGES), torch.arange(4)).backward()
    gradients = [layer.weight.grad for layer in network.heads["target"]]  # type: ignore[union-attr]
    assert all(g is not None and g.abs().max() > 0 for g in gradients)


class Tied(Plain):
    """The head's weight is used in the extractor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        features = self.pooled(x)
        return self.fc(features + (features @ self.prototypes.T) @ self.prototypes)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Forgetful(Plain):
    """What training changes is in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.pooled(x)
        if self.training:
            self.center = features.detach().mean(0)
        return self.fc(features - self.center)


class Unsaveable(Plain):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        return None


class Mixed(Body):
    """Logits of the whole and of the best place, as volo's."""

    def __init__(self) -> None:
        super().__init__(place=nn.Linear(6, K), fc=nn.Linear(6, K))

    def forward(self, x: Tensor) -> Tensor:
        places = self.place(self.map(x).flatten(2).mT)
        return self.fc(self.pooled(x)) + 0.5 * places.max(1)[0]


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scaled": (lambda: Plain(lambda z: 10 * z), "cannot be exported.*probabilities differ"),
    "bounded": (lambda: Plain(torch.tanh), "cannot be exported.*as logits, log_softmax or softmax"),
    "sigmoid": (lambda: Plain(torch.sigmoid), "cannot be exported"),
    "tied": (Tied, "cannot be exported"),
    "cosine": (lambda: nn.Sequential(nn.Flatten(), Cosine(144, K, bias=False)), "cannot be export"),
    "forgetful": (Forgetful, "keep everything that training changes in its state dict"),
    "mixed": (Mixed, "cannot be exported"),
    "extra state": (Unsaveable, "has a dict under '_extra_state'"),
    "several": (
        lambda: Body(a=nn.Linear(6, K), b=nn.Linear(6, K)),
        "returns several classifications in evaluation, from the layers a; b",
    ),
    "reparametrized": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(144, K))
        ),
        r"does not fit the architecture[\s\S]*missing: 1\.parametrizations",
    ),
    "no head": (lambda: nn.Sequential(nn.Conv2d(1, K, 3), nn.Flatten()), "no Linear layer with 5"),
    "bare": (lambda: nn.Linear(3, K), "is a bare Linear layer"),
}


def _both(body: Body, x: Tensor) -> tuple[Tensor, Tensor]:
    features = body.pooled(x)
    return body.a(features), body.b(features)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Body, "forward", _both)
    build, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        check(build)


def test_a_network_that_computes_otherwise_afterwards_is_noticed() -> None:
    """After the training too: weights of another moment, as a file that was not written would hold."""
    network = prepared(Plain)
    state = OrderedDict((k, v.clone()) for k, v in network.export_state().items())
    with torch.no_grad():
        network.heads["target"].weight.mul_(-1)
    with pytest.raises(
        UserError, match=r"probabilities differ from the trained network's \(by up to"
    ):
        models.check_exported(network, Plain(), state, IMAGES, name="network")


@pytest.mark.parametrize(
    ("name", "size", "heads"),
    [
        ("deit_tiny_distilled_patch16_224", 32, ["head", "head_dist"]),
        ("levit_128s", 64, ["head.linear", "head_dist.linear"]),
        ("repvit_m0_9", 32, ["head.head.l", "head.head_dist.l"]),
        ("resnetv2_18", 32, ["head.fc"]),
        ("crossvit_9_240", 240, ["head.0", "head.1"]),
    ],
)
def test_timm_networks_with_other_heads(name: str, size: int, heads: list[str]) -> None:
    pytest.importorskip("timm")
    images = torch.randn(2, 1, size, size)
    network = check(
        lambda: models.build(f"timm:{name}", num_classes=K, channels=1, image_size=size), images
    )
    assert [place.paths for place in network.places] == [(head,) for head in heads]


def test_torchvision_with_auxiliary_outputs() -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    build = lambda: models.build(  # noqa: E731
        "torchvision:googlenet", num_classes=K, channels=1, image_size=32
    )
    network = check(build, torch.randn(2, 1, 32, 32))
    assert network.places[0].paths == ("fc",)
    assert network.train().features(torch.randn(2, 1, 32, 32)).shape == (2, 1024)


@pytest.mark.parametrize("name", ["log_softmax", "fully convolutional", "two heads"])
def test_features_are_one_graph_of_the_compiler(name: str) -> None:
    network = prepared(FINE[name])
    compiled = torch.compile(network.features, backend="eager", fullgraph=True, dynamic=False)
    for training in (True, False):
        network.train(training)
        expected = copy.deepcopy(network).features(IMAGES)
        found = compiled(IMAGES)
        assert torch.equal(found, expected)
        found.sum().backward()
        # Nothing of a step is left in it: it is copied for the moving average.
        copy.deepcopy(network)
