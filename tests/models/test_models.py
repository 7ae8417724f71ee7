"""Networks by name, exchangeable heads, weights in and out."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ptgm_fast import models
from ptgm_fast.errors import UserError
from ptgm_fast.models.weights import read_state, write_atomically

SMALL = {"num_classes": 7, "image_size": 28}


@pytest.mark.parametrize(
    "name",
    [
        "ptgm:cnn-small",
        "ptgm:resnet-small",
        "timm:resnet10t",
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_network_takes_images_and_gives_logits(name: str, channels: int) -> None:
    pytest.importorskip(name.partition(":")[0] if not name.startswith("ptgm") else "torch")
    network = models.build(name, channels=channels, **SMALL).eval()
    images = torch.randn(2, channels, 28, 28)
    assert network(images).shape == (2, 7)
    target = models.TargetNetwork(network, num_classes=7, name=name)
    target.set_head("target", 5)
    target.set_head("source", 11)
    assert target(images).shape == (2, 5)
    assert target.heads["source"](target.features(images)).shape == (2, 11)


@pytest.mark.parametrize("name", ["ptgm:cnn-small", "timm:resnet10t"])
def test_exported_weights_load_into_the_original_architecture(name: str) -> None:
    pytest.importorskip("timm" if name.startswith("timm") else "torch")
    target = models.TargetNetwork(models.build(name, channels=1, **SMALL), num_classes=7).eval()
    target.set_head("target", 4)
    plain = models.build(name, num_classes=4, channels=1, image_size=28).eval()
    plain.load_state_dict(target.export_state())
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(plain(images), target(images))


def test_a_factory_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, channels):\n"
        "    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
        "def lazy(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(num_classes))\n"
        "def headless(num_classes):\n    return nn.Conv2d(1, 1, 3)\n"
        "def no_classes(width=3):\n    return nn.Linear(3, 3)\n"
        "def not_a_module(num_classes):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    path_before = list(sys.path)
    network = models.build("my_networks:small", channels=1, **SMALL)
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    assert sys.path == path_before
    lazy = models.TargetNetwork(
        models.build("my_networks:lazy", channels=1, **SMALL), num_classes=7
    )
    assert lazy.num_features == 6
    assert lazy.features(torch.randn(2, 1, 28, 28)).shape == (2, 6)
    with pytest.raises(UserError, match="no Linear layer with 7 outputs"):
        models.TargetNetwork(
            models.build("my_networks:headless", channels=1, **SMALL), num_classes=7
        )
    with pytest.raises(UserError, match="must accept num_classes"):
        models.build("my_networks:no_classes", channels=1, **SMALL)
    with pytest.raises(UserError, match=r"expected a torch\.nn\.Module"):
        models.build("my_networks:not_a_module", channels=1, **SMALL)
    with pytest.raises(UserError, match="no function or class 'smal'"):
        models.build("my_networks:smal", channels=1, **SMALL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "Accepted"),
        ("ptgm:resnet-smal", "did you mean 'resnet-small'"),
        ("timm:resnet19", "timm has no model"),
        ("torchvision:resnet19", "did you mean"),
        ("no_such_package.module:factory", "cannot be imported"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.build(name, channels=1, **SMALL)


def test_weights_round_trip(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    models.save_weights(module, tmp_path / "w.safetensors", {"task": "t"})
    models.load_weights(other, tmp_path / "w.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    torch.save(module.state_dict(), tmp_path / "w.pt")
    models.load_weights(other, tmp_path / "w.pt")


def test_weights_that_do_not_fit_name_the_tensors(tmp_path: Path) -> None:
    models.save_weights(nn.Sequential(nn.Linear(3, 4)), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"of the wrong shape: 0\.bias \[4\] \(expected \[5\]\)"):
        models.load_weights(nn.Sequential(nn.Linear(3, 5)), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"missing: 1\.bias, 1\.weight"):
        models.load_weights(
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), tmp_path / "w.safetensors"
        )
    with pytest.raises(UserError, match=r"unexpected: 0\.bias"):
        models.load_weights(nn.Sequential(nn.Linear(3, 4, bias=False)), tmp_path / "w.safetensors")


class Payload:
    """A pickle that would write a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"w": Payload(tmp_path / "executed")}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="could run code"):
        read_state(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_damaged_and_missing_weights(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_state(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x10\0\0\0 not weights")
    with pytest.raises(UserError, match=r"damaged|could run code"):
        read_state(tmp_path / name)


def test_a_failed_write_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "w"
    write_atomically(file, b"first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"second")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]
