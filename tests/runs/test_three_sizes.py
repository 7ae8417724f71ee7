"""Third-party networks, each at its own size: a BigGAN-deep of 128, a ViT of 224, a ResNet of 96."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pytorch_pretrained_biggan import BigGAN, BigGANConfig

from on_disk import weights
from ptgm_fast.config import RunConfig, load_config
from ptgm_fast.models import save_weights
from ptgm_fast.runs import check
from ptgm_fast.runs.report import write_report
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stages, run_stages, train
from ptgm_fast.training.context import Context

CONFIG = """
task = "photographs"
[data]
images = "folder:photographs"
labels_per_class = 3
validation_per_class = 2
test_per_class = 3
image_size = 96
channels = 3
[source]
generator = "biggan-deep:biggan"
[source.classifier]
network = "timm:vit_tiny_patch16_224"
weights = "vit.safetensors"
[synthesis]
images = "fresh"
[target]
network = "timm:resnet18"
[pp]
steps = 2
batch_size = 4
[training]
steps = 2
batch_size = 4
[p_ssl]
batch_size = 4
"""


def write_photographs(folder: Path) -> None:
    """Write three classes of eight JPEGs, 140x180, which are upright only by their EXIF orientation."""
    rng = np.random.default_rng(0)
    for label in range(3):
        (folder / f"class-{label}").mkdir(parents=True)
        for number in range(8):
            coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((180, 140), Image.Resampling.BICUBIC)
            exif = Image.Exif()
            exif[274] = 6
            image.save(folder / f"class-{label}" / f"{number}.jpg", exif=exif)


def write_biggan(folder: Path) -> None:
    """Random weights of a narrow BigGAN-deep 128 with ten classes and half the layers, as the package saves them."""
    torch.manual_seed(0)
    layers = [(True, 16, 8), (True, 8, 4), (True, 4, 2), (True, 2, 1), (True, 1, 1)]
    model = BigGAN(BigGANConfig(128, 6, 6, 8, 10, layers, 2, 1e-4, 51)).eval()
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            for _ in range(5):
                hook.compute_weight(module, do_power_iteration=True)
    folder.mkdir()
    (folder / "config.json").write_text(model.config.to_json_string())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    write_photographs(tmp_path / "photographs")
    write_biggan(tmp_path / "biggan")
    torch.manual_seed(1)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_weights(vit, tmp_path / "vit.safetensors")
    (tmp_path / "photographs.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return load_config(tmp_path / "photographs.toml")


@pytest.mark.slow
def test_each_network_sees_its_own_size(photographs: RunConfig, tmp_path: Path) -> None:
    # The whole run rewrites the generator, which takes longest.
    task = build_task(load_config(tmp_path / "photographs.toml", ["source.optimize=false"]))
    seen: dict[str, set[tuple[int, ...]]] = {"classifier": set(), "target": set()}

    def watch(name: str) -> object:
        return lambda module, inputs: seen[name].add(tuple(inputs[0].shape[1:]))

    assert task.source.image_shape == (3, 128, 128)
    task.source.classifier.register_forward_pre_hook(watch("classifier"))
    network = task.new_network()
    network.network.register_forward_pre_hook(watch("target"))
    assert task.data.train.form == (3, 96, 96)
    assert task.data.asking[0].shape == (9, 3, 224, 224)
    results = run_stages(make_stages(task, network), Context())
    assert [result.steps for result in results] == [2, 2]
    # PP starts with images of half the side.
    assert seen == {"classifier": {(3, 224, 224)}, "target": {(3, 48, 48), (3, 96, 96)}}


@pytest.mark.slow
def test_a_whole_run(
    photographs: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The ViT reads every sample in each way that might be meant: 40 samples are enough.
    monkeypatch.setattr(check, "SAMPLES_AT_START", 20)
    monkeypatch.setattr(check, "EXPLAINED_AT_START", 40)
    summary = train(photographs, tmp_path / "run")
    plain = timm.create_model("resnet18", num_classes=3).eval()
    plain.load_state_dict(weights(tmp_path / "run"))
    assert summary["source"]["classifier"]["image_size"] == 224
    assert (
        summary["source"]["classifier"]["crop"]
        == timm.get_pretrained_cfg("vit_tiny_patch16_224").crop_pct
    )
    # Random weights agree by chance.
    assert summary["check"]["pair"]["top1"] < 0.5
    assert any("know other classes" in warning for warning in summary["check"]["warnings"])
    kept = json.loads((tmp_path / "run" / "check.json").read_text())
    assert kept["pair"] == summary["check"]["pair"]
    assert "timm:vit_tiny_patch16_224" in write_report([tmp_path / "run"]).read_text()
    assert load_config(tmp_path / "run" / "config.toml") == photographs
