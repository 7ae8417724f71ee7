"""Models in the local cache of the Hugging Face Hub: as its own package lays them out, and without a network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ptgm_fast import generators, models
from ptgm_fast.errors import UserError

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, repository: str, files: Path) -> None:
    """Put files there as a download does: blobs, and a snapshot of links to them."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(f for f in files.rglob("*") if f.is_file())):
        blob = place / "blobs" / f"{number:040d}"
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(file, blob)
        link = place / "snapshots" / COMMIT / file.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


def test_a_network_of_timm_with_its_weights(cache: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=5).eval()
    config = {"architecture": "resnet18", "num_classes": 5, "pretrained_cfg": {"tag": "x"}}
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), files / "model.safetensors")
    cached(cache, "someone/resnet", files)
    for repository in ("someone/resnet", f"someone/resnet@{COMMIT}"):
        ours = models.build(f"timm:hf-hub:{repository}", num_classes=5, channels=3, image_size=32)
        models.load_weights(ours, f"hf-hub:{repository}")
        images = torch.randn(2, 3, 32, 32)
        assert ours.eval()(images).equal(theirs(images))


def test_a_config_cannot_ask_for_a_download(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    files = tmp_path / "files"
    files.mkdir()
    wishes = {"pretrained": True, "checkpoint_path": "/etc/passwd", "num_classes": 9}
    config = {"architecture": "resnet18", "model_args": wishes | {"stem_width": 32}}
    (files / "config.json").write_text(json.dumps(config))
    cached(cache, "someone/resnet", files)
    ours = models.build("timm:hf-hub:someone/resnet", num_classes=5, channels=3, image_size=32)
    assert ours(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match=r"holds none of.*hf download someone/resnet"):
        models.load_weights(ours, "hf-hub:someone/resnet")
    for text in ("no json", json.dumps({"architecture": "hf-hub:other/one"}), "{}"):
        blob = next((cache / "models--someone--resnet" / "blobs").iterdir())
        blob.write_text(text)
        with pytest.raises(UserError, match=r"timm config\.json|no model"):
            models.build("timm:hf-hub:someone/resnet", num_classes=5, channels=3, image_size=32)


def test_a_pipeline_of_diffusers(cache: Path, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=7,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    pipeline = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path / "files")
    cached(cache, "someone/dit", tmp_path / "files")
    options = "steps=2&guidance=1"
    there = generators.load(f"diffusers:someone/dit?{options}")
    here = generators.load(f"diffusers:{tmp_path / 'files'}?{options}")
    assert there.card.name == "dit"
    latents, labels = torch.randn(2, *here.card.latent_shape), torch.tensor([1, 6])
    images = there.generate(latents, labels, kind="class")
    assert images.equal(here.generate(latents, labels, kind="class"))


@pytest.mark.parametrize("scheme", ["diffusers", "biggan-deep"])
def test_what_is_not_there_is_said_with_the_command(
    scheme: str, cache: Path, tmp_path: Path
) -> None:
    if scheme == "diffusers":
        pytest.importorskip("diffusers")
    for uri, command in (
        ("someone/missing", "hf download someone/missing"),
        ("someone/missing@v1", "hf download someone/missing --revision v1"),
    ):
        with pytest.raises(UserError, match=f"(?s)Nothing is downloaded.*{command}$"):
            generators.load(f"{scheme}:{uri}")
    with pytest.raises(UserError) as raised:
        generators.load(f"{scheme}:{tmp_path}/no/such")
    assert "hf download" not in str(raised.value)
    assert not cache.exists()


def test_a_missing_network_is_said_with_the_command(cache: Path) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"hf download timm/resnet50\.a1_in1k"):
        models.build("timm:hf-hub:timm/resnet50.a1_in1k", num_classes=5, channels=3, image_size=32)
