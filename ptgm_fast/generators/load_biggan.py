"""`biggan-deep:DIR_OR_FILE`: files to a generator; no tensor is held twice."""

from __future__ import annotations

from pathlib import Path

import torch

from ptgm_fast.errors import UserError
from ptgm_fast.generators.biggan_deep import BigGANDeep, BigGANDeepConfig
from ptgm_fast.generators.card import AdapterCard
from ptgm_fast.generators.files import describe, find, read_json, validated
from ptgm_fast.generators.request import Request
from ptgm_fast.generators.spectral import bake_torch
from ptgm_fast.models.weights import load_state, read_state

DEEP_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


def load_biggan_deep(request: Request) -> BigGANDeep:
    """Build on the meta device, map the file, bake spectral norm in place, hand the tensors over."""
    uri = request.uri
    what, place = f"generator {uri.text!r}", Path(uri.target)
    weights = find(place, DEEP_WEIGHTS, what=what) if place.is_dir() else place
    config_path = Path(uri.take("config") or weights.with_name("config.json"))
    uri.done()
    file = describe(weights, request.sha256, what=what)
    where = f"{what}: {str(config_path)!r}"
    config = validated(BigGANDeepConfig, read_json(config_path, what=what), where=where)
    size = 4 * 2 ** sum(upsample for upsample, _, _ in config.layers)
    if size != config.output_dim:
        raise UserError(
            f"{where}: output_dim is {config.output_dim}, but the layers make {size}x{size}"
        )
    widths = [16, *(outputs for _, _, outputs in config.layers)]
    if [inputs for _, inputs, _ in config.layers] != widths[:-1] or widths[-1] != 1:
        raise UserError(
            f"{where}: each layer must take what the one before gives, from width 16 to 1"
        )
    card = AdapterCard(
        name=place.name,
        architecture="biggan-deep",
        num_classes=config.num_classes,
        class_names=tuple(map(str, range(config.num_classes))),
        latent_dim=config.z_dim,
        embedding_dim=config.class_embed_dim,
        image_size=size,
        channels=3,
        condition="class-embedding",
        truncation="selects-statistics",
        files={weights.name: file},
        licences=request.licences,
    )
    with torch.device("meta"):
        generator = BigGANDeep(card, config)
    state = bake_torch(read_state(weights, what=what, mapped=True), where=what)
    load_state(generator, state, where=f"{what}: {str(weights)!r}", assign=True)
    return generator
