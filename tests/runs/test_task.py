"""Settings that do not fit together are reported before anything is trained."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.models import build, save_weights
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import train

Tiny = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["source.classifier.image_size=28"],
            r"source classifier does not take images of shape 1x28x28",
        ),
        (["data.mean=[0.1,0.2,0.3]"], r"data\.mean has 3 values for images with 1 channel"),
        (
            ["data.channels=3", "source.classifier.std=[0.1,0.2,0.3]"],
            r"source\.classifier\.std has 3 values for images with 1 channel",
        ),
        (["data.labels_per_class=26"], r"class '0' has 30 images"),
        (["data.images=npz:missing.npz"], r"does not exist"),
        (["source.generator=nowhere"], r"neither bundled nor an existing folder"),
        (["target.network=timm:resnet19"], r"timm has no model"),
        (["target.network=torchvision:densenet121"], r"does not take images of shape 1x8x8"),
        (["device=quantum"], r"device 'quantum' cannot be used"),
        (
            [
                "source.classifier.network=ptgm:cnn-small",
                "source.classifier.weights=missing.safetensors",
            ],
            "source classifier: file 'missing.safetensors' does not exist",
        ),
    ],
)
def test_what_does_not_fit(tiny: Tiny, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_task(tiny(*settings))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_a_device_that_is_not_there(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="'cuda' cannot be used here"):
        build_task(tiny("device=cuda"))
    with pytest.raises(UserError, match='"cpu" always works'):
        build_task(tiny("device=meta"))


def test_a_classifier_of_ones_own(tiny: Tiny, tmp_path: Path) -> None:
    classifier = build("ptgm:resnet-small", num_classes=6, channels=1, image_size=8).eval()
    save_weights(classifier, tmp_path / "c.safetensors")
    settings = (
        "source.classifier.network=ptgm:resnet-small",
        f"source.classifier.weights={tmp_path / 'c.safetensors'}",
    )
    source = build_task(
        tiny(*settings, "source.classifier.mean=[0.2]", "source.classifier.std=[0.7]")
    ).source
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = classifier((images / 255 - 0.2) / 0.7)
    assert torch.allclose(source.classify(images), expected, atol=1e-5)
    assert torch.allclose(source.classify(images / 127.5 - 1), expected, atol=1e-5)


def test_a_classifier_with_other_classes_names_the_tensors(tiny: Tiny, tmp_path: Path) -> None:
    save_weights(
        build("ptgm:cnn-small", num_classes=9, channels=1, image_size=8), tmp_path / "c.safetensors"
    )
    settings = (
        "source.classifier.network=ptgm:cnn-small",
        f"source.classifier.weights={tmp_path / 'c.safetensors'}",
    )
    with pytest.raises(UserError, match=r"10\.weight \[9, \d+\] \(expected \[6"):
        build_task(tiny(*settings))


def test_exchanged_generator_weights_are_noticed(tiny: Tiny, pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path / "pair")
    shutil.copy(pair / "classifier.safetensors", tmp_path / "pair" / "generator.safetensors")
    with pytest.raises(UserError, match="sha256 expected"):
        build_task(tiny(f"source.generator={tmp_path / 'pair'}"))


def test_separate_test_images(tiny: Tiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "t.npz", x=rng.integers(0, 256, (21, 8, 8), dtype=np.uint8), y=np.arange(21) % 3
    )
    data = build_task(
        tiny(f"data.test_images=npz:{tmp_path / 't.npz'}", "data.test_per_class=all")
    ).data
    assert (len(data.train), len(data.validation), len(data.test)) == (15, 15, 21)
    np.savez(tmp_path / "u.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    with pytest.raises(UserError, match=r"data\.test_images has the classes"):
        build_task(tiny(f"data.test_images=npz:{tmp_path / 'u.npz'}"))


def test_other_sizes_and_channels_are_brought_to_the_generators(tiny: Tiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "c.npz",
        x=rng.integers(0, 256, (60, 19, 25, 3), dtype=np.uint8),
        y=np.arange(60) % 3,
    )
    data = build_task(tiny(f"data.images=npz:{tmp_path / 'c.npz'}", "data.test_per_class=all")).data
    assert data.train.images.shape == (15, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8


def test_every_method_of_a_seed_starts_from_the_same_weights(tiny: Tiny) -> None:
    a, b, c = (build_task(tiny(seed=seed)).new_network().state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


NETWORKS = """
import torch.nn as nn, torch.nn.functional as F
class Net(nn.Module):
    factor = 1
    def __init__(self, num_classes, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, 2)
        self.fc1 = nn.Linear(36, 16)
        self.fc2 = nn.Linear(16, num_classes)
    def logits(self, x):
        return self.fc2(F.relu(self.fc1(F.relu(self.conv(x)).flatten(1))))
    def forward(self, x):
        return F.log_softmax(self.logits(x), dim=1)
class Scaled(Net):
    def forward(self, x):
        return 16 * self.logits(x)
class Words(Net):
    def forward(self, x):
        return {"words": "none"}
class Probabilities(Net):
    def forward(self, x):
        return self.logits(x).softmax(1)
class Failing(Net):
    def __init__(self, num_classes):
        raise LookupError("a table of mine")
class Named(Net):
    def forward(self, x):
        return {"logits": self.logits(x)}
"""


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with networks, imported from the working directory."""
    name = f"nets_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_network_that_ends_in_log_softmax_is_what_its_file_holds(
    tiny: Tiny, tmp_path: Path, others: str
) -> None:
    config = tiny(f"target.network={others}:Net", "training.lr=0.02", "pp.lr=0.02")
    summary = train(config, tmp_path / "run")
    plain = build(f"{others}:Net", num_classes=3, channels=1, image_size=8).eval()
    plain.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    test = build_task(config).data.test
    with torch.no_grad():
        predicted = plain((test.images / 255 - 0.5) / 0.5).argmax(1)
    assert (predicted == test.labels).double().mean().item() == summary["target"]["test_accuracy"]
    assert summary["target"]["test_accuracy"] > 0.6


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("Scaled", "cannot be exported"),
        ("Words", "expected class scores"),
        ("Failing", "LookupError: a table of mine"),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused_before_the_folder_is_there(
    tiny: Tiny, tmp_path: Path, others: str, network: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny(f"target.network={others}:{network}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("Net", None),
        ("Probabilities", "returns probabilities, expected logits"),
        ("Named", "returns dict"),
    ],
)
def test_what_a_source_classifier_returns(
    tiny: Tiny, tmp_path: Path, others: str, network: str, message: str | None
) -> None:
    name = f"{others}:{network}"
    made = build(name, num_classes=6, channels=1, image_size=8)
    torch.save({"state_dict": made.state_dict()}, tmp_path / "c.pt")
    settings = (f"source.classifier.network={name}", "source.classifier.weights=c.pt")
    notices: list[str] = []
    if message is None:
        build_task(tiny(*settings), on_notice=notices.append)
        assert "source classifier: 'c.pt': loaded the weights under 'state_dict'" in notices
    else:
        with pytest.raises(UserError, match=message):
            build_task(tiny(*settings))
