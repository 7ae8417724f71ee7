"""Conversion of NVIDIA's StyleGAN pickles to safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapters.nvidia_pickle import (
    PickledModule,
    pickled_module,
    plain,
    read_pickle,
    tensor,
)
from ptgm_fast.generators.adapters.stylegan2 import SynthesisConfig
from ptgm_fast.generators.card import AdapterCard
from ptgm_fast.generators.loading import load
from ptgm_fast.models.weights import save_weights, sha256

NETWORKS = ("G_ema", "G")


@dataclass(frozen=True)
class Converted:
    """A converted generator. uri: for `generators.load`. sha256: of the file written."""

    uri: str
    sha256: str
    card: AdapterCard


def convert(source: Path, out: Path, *, network: str = "G_ema") -> Converted:
    """Write a pickle's generator as safetensors, with its arguments in the metadata, and load it once.

    source: NVIDIA's .pkl of StyleGAN2-ADA or StyleGAN3 (PyTorch). out: a new .safetensors. network: "G_ema", the weight
    average used for making images, or "G". No code in the pickle is run (see `nvidia_pickle`). Raises UserError for any
    other file, an unconditional network, an unknown argument, and an `out` that exists.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {str(out)!r} must end in .safetensors")
    if out.exists():
        raise UserError(f"{str(out)!r} already exists; choose another --out")
    if network not in NETWORKS:
        raise UserError(f"--network {network!r} is unknown; accepted: {', '.join(NETWORKS)}")
    if not source.is_file():
        raise UserError(f"file {str(source)!r} does not exist")
    found = _network(read_pickle(source), network, source)
    architecture = _architecture(found, source)
    state: dict[str, Tensor] = {}
    try:
        config = _arguments(found, architecture)
        _collect(found, "", state)
    except ValueError as error:
        raise UserError(f"{str(source)!r}: {network}: {error}") from error
    if not config.get("c_dim"):
        raise UserError(
            f"{str(source)!r}: the network is unconditional (c_dim = 0); use one that was trained with class labels"
        )
    metadata = {"architecture": architecture, "config": json.dumps(config, sort_keys=True)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(state, out, metadata)
    uri = f"{architecture}:{out}"
    try:
        card = load(uri).card
    except UserError:
        # Do not leave a file behind that cannot be loaded.
        out.unlink()
        raise
    assert isinstance(card, AdapterCard)
    return Converted(uri, sha256(out), card)


def _network(root: Any, name: str, source: Path) -> PickledModule:
    found = pickled_module(root.get(name)) if isinstance(root, dict) else None
    if found is not None:
        return found
    has = ", ".join(map(str, root)) if isinstance(root, dict) else type(root).__name__
    raise UserError(f"{str(source)!r} holds no network {name!r}; it holds: {has}")


def _part(network: PickledModule, *names: str) -> PickledModule | None:
    """The submodule of a network at a path of names."""
    found: PickledModule | None = network
    for name in names:
        modules = found.state.get("_modules") if found else None
        found = pickled_module(modules.get(name)) if isinstance(modules, dict) else None
    return found


def _architecture(network: PickledModule, source: Path) -> str:
    if _part(network, "mapping") and _part(network, "synthesis", "b4"):
        return "stylegan2-ada"
    if _part(network, "mapping") and _part(network, "synthesis", "input"):
        return "stylegan3"
    raise UserError(
        f"{str(source)!r}: {network.class_name} is neither a StyleGAN2-ADA nor a StyleGAN3 generator"
    )


def _arguments(network: PickledModule, architecture: str) -> dict[str, Any]:
    """The network's init_kwargs, as `StyleGAN2Config` or `StyleGAN3Config` takes them. Raises ValueError."""
    config = plain(network.state.get("_init_kwargs"))
    if not isinstance(config, dict) or "z_dim" not in config:
        raise ValueError("the network's arguments (_init_kwargs) are missing")
    config.pop("class_name", None)
    if architecture == "stylegan2-ada" and "synthesis_kwargs" not in config:
        # The StyleGAN2 in the stylegan3 repository takes these arguments unnested, and clamps by default.
        nested = config.keys() & SynthesisConfig.model_fields.keys()
        layer = _part(network, "synthesis", "b4", "conv1")
        clamp = plain(layer.state.get("conv_clamp")) if layer else None
        config["synthesis_kwargs"] = {"conv_clamp": clamp} | {k: config.pop(k) for k in nested}
    return config


def _collect(network: PickledModule, prefix: str, state: dict[str, Tensor]) -> None:
    """Collect parameters and persistent buffers by state-dict name. Raises ValueError for one that is not a tensor."""
    if prefix.count(".") > 8:
        raise ValueError("its modules are nested too deeply")
    temporary = network.state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in network.entries(kind).items():
            if value is None or name in temporary:
                continue
            try:
                state[prefix + name] = tensor(value).float()
            except ValueError as error:
                raise ValueError(f"{prefix}{name} cannot be read: {error}") from error
    for name, value in network.entries("_modules").items():
        if (child := pickled_module(value)) is not None:
            _collect(child, f"{prefix}{name}.", state)
