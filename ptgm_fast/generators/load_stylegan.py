"""`stylegan2-ada:FILE` and `stylegan3:FILE`: a state dict with the arguments that its network was built with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.card import AdapterCard
from ptgm_fast.generators.files import describe, read_json, validated
from ptgm_fast.generators.request import Request
from ptgm_fast.generators.stylegan2 import StyleGAN2Config, StyleGAN2Network
from ptgm_fast.generators.stylegan3 import StyleGAN3Config, StyleGAN3Network
from ptgm_fast.models.weights import load_state, read_metadata, read_state


class StyleGAN(AdaptedGenerator):
    """G(z, y, t): a label vector y, one-hot or soft, has its embedding mixed; t in (0, 1] moves styles to their mean."""

    def __init__(self, card: AdapterCard, network: nn.Module) -> None:
        super().__init__()
        self.card = card
        self.network = network

    def forward(self, latents: Tensor, vector: Tensor, truncation: float = 1.0) -> Tensor:
        """Images of latents [N, z_dim] and class weights [N, K], clipped to [-1, 1] as the published code does."""
        return self.network(latents, vector, truncation).clamp(-1, 1)

    def example(self, truncation: float | None = None) -> tuple[Any, ...]:
        return *super().example(), 1.0 if truncation is None else truncation

    def synthesise(self, latents: Tensor, condition: Tensor, truncation: float | None) -> Tensor:
        return self(latents, condition, 1.0 if truncation is None else truncation)


def load_stylegan(request: Request) -> StyleGAN:
    """Build on the meta device, map the file, hand the tensors over. cutoff, noise: see docs/generators.md."""
    uri = request.uri
    what, path = f"generator {uri.text!r}", Path(uri.target)
    config_path = uri.take("config")
    cutoff = uri.number("cutoff", None)
    noise = uri.choice("noise", ("const", "none"), "const") if uri.scheme == "stylegan2-ada" else ""
    uri.done()
    if cutoff is not None and cutoff < 0:
        raise UserError(f"{what}: cutoff counts layers, so it must not be negative, got {cutoff}")
    file = describe(path, request.sha256, what=what)
    values = _config(path, config_path, uri.scheme, what)
    layers = None if cutoff is None else int(cutoff)
    config: StyleGAN2Config | StyleGAN3Config
    network: StyleGAN2Network | StyleGAN3Network
    with torch.device("meta"):
        if uri.scheme == "stylegan2-ada":
            config = validated(StyleGAN2Config, values, where=what)
            network = StyleGAN2Network(config, noise=noise == "const", cutoff=layers)
        else:
            config = validated(StyleGAN3Config, values, where=what)
            network = StyleGAN3Network(config, cutoff=layers)
    if layers is not None and layers > network.mapping.num_ws:
        raise UserError(
            f"{what}: cutoff = {layers}, but the network has {network.mapping.num_ws} styles"
        )
    card = {
        "name": path.stem,
        "architecture": uri.scheme,
        "num_classes": config.c_dim,
        "class_names": tuple(map(str, range(config.c_dim))),
        "latent_dim": config.z_dim,
        "image_size": config.img_resolution,
        "channels": config.img_channels,
        "condition": "soft-vector",
        "truncation": "interpolates-styles",
        "settings": {"cutoff": layers} | ({"noise": noise} if noise else {}),
        "files": {path.name: file},
        "licences": request.licences,
    }
    load_state(
        network,
        read_state(path, what=what, mapped=True),
        where=f"{what}: {str(path)!r}",
        assign=True,
    )
    return StyleGAN(validated(AdapterCard, card, where=what), network)


def _config(path: Path, given: str, architecture: str, what: str) -> dict[str, Any]:
    """The network's arguments: from the file named, from the weights' own metadata, or config.json beside them."""
    beside = path.with_name("config.json")
    metadata = {} if given else read_metadata(path)
    if "config" in metadata:
        found = metadata.get("architecture", architecture)
        if found != architecture:
            raise UserError(f"{what}: {str(path)!r} holds a {found} network; write {found}:{path}")
        try:
            config = json.loads(metadata["config"])
        except json.JSONDecodeError as error:
            raise UserError(
                f"{what}: the arguments in the metadata of {str(path)!r} are damaged ({error})"
            ) from error
    elif given or beside.is_file():
        config = read_json(Path(given or beside), what=what)
    else:
        raise UserError(
            f"{what}: the arguments that the network was built with are missing. `ptgm-fast convert` writes them into the "
            "weights; or put them into config.json beside the file (z_dim, c_dim, w_dim, img_resolution, ...), or "
            "name a file with ?config=FILE"
        )
    if not isinstance(config, dict) or not config.get("c_dim"):
        raise UserError(
            f"{what}: the network is unconditional (c_dim = 0); class labels need one that was trained with them"
        )
    return config
