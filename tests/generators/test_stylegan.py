"""StyleGAN2-ADA and StyleGAN3 against a plain implementation; conditions, truncation, weights that do not fit."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapters.stylegan2 import StyleGAN2Config, StyleGAN2Network
from ptgm_fast.generators.adapters.stylegan3 import StyleGAN3Config, StyleGAN3Network
from ptgm_fast.models import save_weights

sys.path.insert(0, str(Path(__file__).parent))
import plain_stylegan as plain

SIZES = {"z_dim": 6, "c_dim": 5, "w_dim": 7, "img_resolution": 16, "img_channels": 3}
NARROW = {"channel_base": 64, "channel_max": 6}
TWO: dict[str, dict[str, Any]] = {
    "skip": {"synthesis_kwargs": NARROW, "mapping_kwargs": {"num_layers": 3}},
    "resnet": {"synthesis_kwargs": NARROW | {"architecture": "resnet", "conv_clamp": 0.5}},
    "short filter": {
        "synthesis_kwargs": NARROW | {"resample_filter": [1, 1]},
        "mapping_kwargs": {"w_avg_beta": None},
    },
    "orig, long filter": {
        "synthesis_kwargs": NARROW
        | {"architecture": "orig", "resample_filter": [1, 2, 4, 4, 2, 1], "use_noise": False},
        "mapping_kwargs": {"num_layers": 2, "embed_features": 3, "layer_features": 9},
        "img_channels": 1,
    },
}
DEEP = {"num_layers": 6, "num_critical": 2, "margin_size": 4, "channel_base": 128, "channel_max": 5}
THREE: dict[str, dict[str, Any]] = {
    "t": DEEP | {"img_resolution": 32},
    "r": DEEP | {"img_resolution": 32, "conv_kernel": 1, "use_radial_filters": True},
}


def randomized(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict in which every value has a visible effect."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in network.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator)
        if name.endswith("magnitude_ema"):
            value = value.abs() + 0.5
        elif name.endswith("affine.bias"):
            value = 1 + 0.3 * value
        elif name.endswith(("fc0.weight", "fc1.weight", "fc2.weight")) or "mapping.fc" in name:
            value = value * 100  # stored divided by the learning rate's multiplier
        elif name.endswith("noise_strength"):
            value = torch.tensor(0.3)
        elif name.endswith("transform"):
            value = torch.eye(3)
        elif "torgb" in name or re.search(r"L6_\d+_\d\.(weight|bias)", name):
            # Images that are not clipped everywhere.
            value = value * 0.1
        state[name] = value
    return state


def with_filters(state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """With the low-pass filters, which are part of the weights."""
    for name in state:
        if name.endswith("resample_filter"):
            # Like NVIDIA's network: a convolution that does not upsample uses the default filter, whatever it is given.
            given = {} if "conv1" in name else config["synthesis_kwargs"]
            taps = torch.tensor(given.get("resample_filter", [1, 3, 3, 1]))
            state[name] = torch.outer(taps, taps).float() / taps.sum() ** 2
    if "num_layers" in config:
        for name, *_, filters, _ in plain.Geometry(config).layers:
            for kind, taps in zip(("up_filter", "down_filter"), filters, strict=True):
                assert (taps is not None) == (f"synthesis.{name}.{kind}" in state)
                if taps is not None:
                    state[f"synthesis.{name}.{kind}"] = torch.tensor(taps, dtype=torch.float32)


def built(architecture: str, config: dict[str, Any]) -> torch.nn.Module:
    if architecture == "stylegan2-ada":
        return StyleGAN2Network(StyleGAN2Config(**config), None, noise=True)
    return StyleGAN3Network(StyleGAN3Config(**config), None)


def made(
    folder: Path, architecture: str, config: dict[str, Any]
) -> tuple[str, dict[str, np.ndarray]]:
    """URI and weights (float64) of a network with random weights."""
    network = built(architecture, config)
    state = randomized(network)
    with_filters(state, config)
    path = folder / "network.safetensors"
    save_weights(state, path, {"architecture": architecture, "config": json.dumps(config)})
    return f"{architecture}:{path}", {k: v.double().numpy() for k, v in state.items()}


@pytest.mark.parametrize("psi", [1.0, 0.6])
@pytest.mark.parametrize("name", [*TWO, *THREE])
def test_equals_the_plain_implementation(name: str, psi: float, tmp_path: Path) -> None:
    architecture = "stylegan2-ada" if name in TWO else "stylegan3"
    config = SIZES | (TWO | THREE)[name]
    uri, state = made(tmp_path, architecture, config)
    generator = generators.load(uri)
    torch.manual_seed(0)
    latents = torch.randn(2, 6)
    soft = torch.softmax(torch.randn(2, 5), 1)
    for condition, vector in ((soft, soft), (torch.tensor([1, 3]), torch.eye(5)[[1, 3]])):
        found = generator.generate(latents, condition, truncation=psi)
        for i in range(2):
            inputs = state, config, latents[i].double().numpy(), vector[i].double().numpy(), psi
            expected = plain.stylegan3(*inputs) if name in THREE else plain.stylegan2(*inputs, noise="orig" not in name)  # fmt: skip
            assert expected.std() > 0.01
            assert (np.abs(expected) < 1).mean() > 0.5
            np.testing.assert_allclose(found[i].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["skip", "r"])
def test_the_rewrite_is_equal(name: str, tmp_path: Path) -> None:
    uri, _ = made(
        tmp_path, "stylegan2-ada" if name in TWO else "stylegan3", SIZES | (TWO | THREE)[name]
    )
    original = generators.load(uri)
    result = generators.optimize(original, truncation=0.7)
    assert result.left is None
    inputs = torch.randn(3, 6), torch.softmax(torch.randn(3, 5), 1)
    torch.testing.assert_close(
        result.module.generate(*inputs, truncation=0.7),
        original.generate(*inputs, truncation=0.7),
        atol=1e-5,
        rtol=0,
    )


def test_options(tmp_path: Path) -> None:
    uri, state = made(tmp_path, "stylegan2-ada", SIZES | TWO["skip"])
    latents, labels = torch.randn(2, 6), torch.tensor([0, 4])
    quiet = generators.load(f"{uri}?noise=none")
    expected = plain.stylegan2(state, SIZES | TWO["skip"], latents[0].double().numpy(), np.eye(5)[0], 1.0, False)  # fmt: skip
    np.testing.assert_allclose(quiet.generate(latents, labels)[0].numpy(), expected, atol=2e-5)
    full, none, some = (
        generators.load(f"{uri}{option}").generate(latents, labels, truncation=0.3)
        for option in ("", "?cutoff=0", "?cutoff=2")
    )
    plainly = generators.load(uri).generate(latents, labels)
    torch.testing.assert_close(none, plainly)
    assert (full - none).abs().max() > 1e-3
    assert min((some - full).abs().max(), (some - none).abs().max()) > 1e-4
    card = generators.load(f"{uri}?cutoff=2").card
    assert card.truncation == "interpolates-styles"
    assert card.settings == {"cutoff": 2, "noise": "const"}  # type: ignore[attr-defined]


def test_what_does_not_fit(tmp_path: Path) -> None:
    config = SIZES | TWO["skip"]
    uri, _ = made(tmp_path, "stylegan2-ada", config)
    path = tmp_path / "network.safetensors"
    bare = tmp_path / "bare.safetensors"
    state = generators.load(uri).network.state_dict()  # type: ignore[union-attr]
    save_weights(state, bare)
    for wrong, message in (
        (uri.replace("stylegan2-ada", "stylegan3"), "holds a stylegan2-ada network"),
        (f"stylegan2-ada:{bare}", r"ptgm-fast convert"),
        (f"{uri}?cutoff=-1", "must not be negative"),
        (f"{uri}?cutoff=7", "cutoff = 7, but the network has 6 styles"),
        (f"{uri}?noise=random", "accepted: const, none"),
        (f"{uri}?soft=sample-class", "soft=sample-class would have no effect"),
    ):
        with pytest.raises(UserError, match=message):
            generators.load(wrong)
    for change, message in (
        ({"c_dim": 0}, "unconditional"),
        ({"c_dim": 6}, r"mapping.embed.weight \[7, 5\] \(expected \[7, 6\]\)"),
        ({"img_resolution": 12}, "not a power of 2"),
        ({"color": "blue"}, "color"),
        ({"synthesis_kwargs": NARROW | {"resample_filter": [1, 2, 1]}}, "3 taps; supported: 2, 4"),
        ({"img_resolution": 32}, "missing: .*synthesis.b32"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            generators.load(f"stylegan2-ada:{bare}")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"damaged|built with are missing"):
        generators.load(uri)
