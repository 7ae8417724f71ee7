"""Loading StyleGAN2 and StyleGAN3: a state dict, with the arguments that its network was built with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapted import AdaptedGenerator
from ptgm_fast.generators.adapters.stylegan_parts import StyleGANConfig, StyleGANNetwork
from ptgm_fast.generators.card import AdapterCard, FileCard
from ptgm_fast.generators.files import read_json, read_weights, validated
from ptgm_fast.generators.request import Request
from ptgm_fast.models.checkpoints import split_choice
from ptgm_fast.models.weights import load_state, read_metadata

Config = TypeVar("Config", bound=StyleGANConfig)


class StyleGAN(AdaptedGenerator):
    """G(z, y, t): a label vector y, one-hot or soft, mixes class embeddings; t < 1 moves styles towards their mean."""

    def __init__(self, card: AdapterCard, network: StyleGANNetwork) -> None:
        super().__init__()
        self.card, self.network = card, network

    def forward(self, latents: Tensor, vector: Tensor, truncation: float = 1.0) -> Tensor:
        """Images from latents [N, z_dim] and class weights [N, K], clipped to [-1, 1] as the published code does."""
        return self.network(latents, vector, truncation).clamp(-1, 1)


def load_stylegan(
    request: Request,
    model: type[Config],
    build: Callable[[Config, int | None], StyleGANNetwork],
    **settings: str,
) -> StyleGAN:
    """Build on the meta device, memory-map the file, assign the tensors. cutoff, config: see docs/generators.md.

    build: makes the network from its arguments and a cutoff. settings: the card's, in addition to the cutoff.
    """
    what, (path, _) = request.what, split_choice(request.target)
    config_path = request.take("config")
    cutoff = request.whole("cutoff", None)
    request.done()
    if cutoff is not None and cutoff < 0:
        raise UserError(f"{what}: cutoff counts layers, so it must not be negative, got {cutoff}")
    file = FileCard.of(path, request.sha256, what=what)
    config = validated(model, _config(path, config_path, request.scheme, what), where=what)
    with torch.device("meta"):
        network = build(config, cutoff)
    if cutoff is not None and cutoff > network.mapping.num_ws:
        raise UserError(
            f"{what}: cutoff = {cutoff}, but the network has {network.mapping.num_ws} styles"
        )
    card = request.card(
        name=path.stem,
        architecture=request.scheme,
        num_classes=config.c_dim,
        latent_dim=config.z_dim,
        image_size=config.img_resolution,
        channels=config.img_channels,
        condition="soft-vector",
        truncation="interpolates-styles",
        settings={"cutoff": cutoff, **settings},
        files={path.name: file},
    )
    state = read_weights(request.target, what=what)
    load_state(network, state, where=f"{what}: {str(path)!r}", assign=True)
    return StyleGAN(card, network)


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
            f"{what}: the network is unconditional (c_dim = 0); use one that was trained with class labels"
        )
    return config
