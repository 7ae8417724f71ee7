"""BigGAN-deep against the package whose layout it reads, `pytorch-pretrained-biggan`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_pretrained_biggan import BigGAN, BigGANConfig

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.models import save_weights, sha256

LAYERS_128 = BigGANConfig().layers
LAYERS_256 = [
    *[(False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8), (True, 8, 8)],
    *[(False, 8, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1)],
]
LAYERS_512 = [*LAYERS_256[:-1], (True, 2, 1), (False, 1, 1), (True, 1, 1)]
LAYERS_32 = [(False, 16, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (True, 2, 1)]
SMALL = BigGANConfig(32, 6, 6, 8, 10, LAYERS_32, 4, 1e-4, 51)
CONFIGS = {
    "128": BigGANConfig(128, 6, 6, 8, 10, LAYERS_128, 8, 1e-4, 51),
    "256-reduced": BigGANConfig(256, 5, 5, 4, 7, LAYERS_256, 8, 1e-4, 51),
    "512-reduced": BigGANConfig(512, 5, 5, 4, 7, LAYERS_512, 8, 1e-4, 51),
}


def made(config: BigGANConfig, folder: Path) -> BigGAN:
    """A network with random weights and statistics, saved as the package saves it."""
    torch.manual_seed(0)
    model = BigGAN(config).eval()
    # Singular vectors as training leaves them; random ones would make weights explode.
    if config.channel_width < 100:
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                for _ in range(5):
                    hook.compute_weight(module, do_power_iteration=True)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_vars"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_means"):
            tensor.normal_(std=0.3)
        elif name.endswith("gamma") or name == "generator.bn.weight":
            tensor.fill_(0.7)
        elif name == "generator.bn.bias":
            tensor.fill_(0.1)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.to_json_string())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_package(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    peer = made(config, tmp_path / "model")
    ours = generators.load(f"biggan-deep:{tmp_path / 'model'}")
    torch.manual_seed(1)
    latents = torch.randn(2, config.z_dim).clamp(-2, 2)
    labels = torch.tensor([3, 6])
    one_hot = F.one_hot(labels, config.num_classes).float()
    soft = torch.softmax(2 * torch.randn(2, config.num_classes), 1)
    truncations = (1.0, 0.4, 0.43) if name == "128" else (0.5,)
    with torch.no_grad():
        for truncation in truncations:
            for condition, vector in ((labels, one_hot), (soft, soft)):
                expected = peer(latents, vector, truncation)
                found = ours.generate(latents, condition, truncation=truncation)
                assert expected.std() > 0.05
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        mixed = ours.generate(latents, soft @ peer.embeddings.weight.T, kind="embedding")
        torch.testing.assert_close(mixed, peer(latents, soft, 1.0), atol=1e-5, rtol=0)
    assert ours.card.image_size == config.output_dim


def test_safetensors_legacy_files_and_the_sha256(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    peer = made(CONFIGS["128"], folder)
    path = folder / "pytorch_model.bin"
    latents, labels = torch.randn(1, 6), torch.tensor([2])
    expected = generators.load(f"biggan-deep:{folder}").generate(latents, labels)
    # Published in 2018, before torch's files were archives.
    torch.save(peer.state_dict(), path, _use_new_zipfile_serialization=False)
    loaded = generators.load(f"biggan-deep:{path}?sha256={sha256(path)}")
    torch.testing.assert_close(loaded.generate(latents, labels), expected, atol=2e-6, rtol=0)
    assert loaded.card.files["pytorch_model.bin"].sha256 == sha256(path)
    with pytest.raises(UserError, match="sha256 expected: 00"):
        generators.load(f"biggan-deep:{folder}", sha256="0" * 64)
    path.unlink()
    save_weights(peer, folder / "model.safetensors")
    before = sha256(folder / "model.safetensors")
    loaded = generators.load(f"biggan-deep:{folder}")
    torch.testing.assert_close(loaded.generate(latents, labels), expected, atol=2e-6, rtol=0)
    assert sha256(folder / "model.safetensors") == before, "baking wrote into the file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_classes": 11},
            r"of the wrong shape: embeddings\.weight \[6, 10\] \(expected \[6, 11\]\)",
        ),
        (
            {"channel_width": 16},
            r"of the wrong shape: .*generator\.bn\.bias \[8\] \(expected \[16\]\)",
        ),
        ({"output_dim": 256}, "the layers make 128x128"),
        ({"eps": "small"}, "eps"),
        ({"attention_layer_position": 6}, r"missing: .*generator\.layers\.6\.snconv1x1_g\.weight"),
    ],
)
def test_a_config_that_does_not_fit(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    made(CONFIGS["128"], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        generators.load(f"biggan-deep:{tmp_path}")


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds none of model\.safetensors"):
        generators.load(f"biggan-deep:{tmp_path}")
    made(CONFIGS["128"], tmp_path)
    with pytest.raises(UserError, match="unknown option trunc; accepted: config, licence, sha256"):
        generators.load(f"biggan-deep:{tmp_path}?trunc=1")
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    del state["generator.gen_z.weight_u"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing: generator\.gen_z\.weight_u"):
        generators.load(f"biggan-deep:{tmp_path}")


def test_a_rewrite_is_for_one_truncation(tmp_path: Path) -> None:
    made(SMALL, tmp_path / "model")
    original = generators.load(f"biggan-deep:{tmp_path / 'model'}")
    result = generators.optimize(original, truncation=0.4)
    inputs = torch.randn(2, 6), torch.softmax(torch.randn(2, 10), 1)
    assert result.fixed == (0.4,)
    torch.testing.assert_close(
        result.module.generate(*inputs, truncation=0.4),
        original.generate(*inputs, truncation=0.4),
        atol=1e-5,
        rtol=0,
    )
    with pytest.raises(ValueError, match=r"optimized for 0\.4, got 1\.0"):
        result.module.generate(*inputs)


PEAK = """
import sys, threading, time, torch
from ptgm_fast import generators
torch.nn.Linear(4, 4)(torch.zeros(1, 4))
def resident():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(fields["VmHWM"].split()[0]) * 1024
generators.load(sys.argv[2])
open("/proc/self/clear_refs", "w").write("5")
before = resident()
generators.load(sys.argv[1])
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["pytorch_model.bin", "model.safetensors"])
def test_loading_holds_no_tensor_twice(form: str, tmp_path: Path) -> None:
    """A 256x256 BigGAN-deep of the published size peaks at 1.3x its file or less."""
    made(CONFIGS["128"], tmp_path / "small")
    config = BigGANConfig(256, 128, 128, 128, 1000, LAYERS_256, 8, 1e-4, 51)
    model = made(config, tmp_path / "big")
    path = tmp_path / "big" / form
    if form == "model.safetensors":
        save_weights(model, path)
        (tmp_path / "big" / "pytorch_model.bin").unlink()
    uris = [f"biggan-deep:{tmp_path / name}" for name in ("big", "small")]
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *uris], capture_output=True, text=True, check=True
    )
    ratio = int(result.stdout) / path.stat().st_size
    assert 0.5 < ratio <= 1.3, f"{ratio:.2f} x {path.stat().st_size / 1e6:.0f} MB"
