"""NVIDIA's StyleGAN pickles to safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.errors import UserError
from ptgm_fast.generators.card import AdapterCard
from ptgm_fast.generators.loading import load
from ptgm_fast.generators.nvidia_pickle import Record, read_pickle
from ptgm_fast.models.weights import save_weights, sha256

NETWORKS = ("G_ema", "G")


@dataclass(frozen=True)
class Converted:
    """uri: what `generators.load` takes. sha256: of the file written."""

    uri: str
    sha256: str
    card: AdapterCard


def convert(source: Path, out: Path, *, network: str = "G_ema") -> Converted:
    """Write a generator of a pickle as safetensors, with its arguments in the metadata, and load it once.

    source: NVIDIA's .pkl of StyleGAN2-ADA or StyleGAN3 (PyTorch). out: a new .safetensors. network: "G_ema", the average
    that images are made with, or "G". Nothing of the pickle runs (see `nvidia_pickle`). Raises UserError for another
    file, an unconditional network, an argument that is not known, and an `out` that exists.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {str(out)!r} must end in .safetensors")
    if out.exists():
        raise UserError(f"{str(out)!r} already exists; choose another --out")
    if network not in NETWORKS:
        raise UserError(f"--network {network!r} is unknown; accepted: {', '.join(NETWORKS)}")
    if not source.is_file():
        raise UserError(f"file {str(source)!r} does not exist")
    record = _network(read_pickle(source), network, source)
    architecture, config = _architecture(record, source), _plain(record.state.get("_init_kwargs"))
    if not isinstance(config, dict) or "z_dim" not in config:
        raise UserError(f"{str(source)!r}: the network's arguments (_init_kwargs) are missing")
    if not config.get("c_dim"):
        raise UserError(
            f"{str(source)!r}: the network is unconditional (c_dim = 0); class labels need one that was trained with them"
        )
    config.pop("class_name", None)
    state: dict[str, Tensor] = {}
    _collect(record, "", state)
    metadata = {"architecture": architecture, "config": json.dumps(config, sort_keys=True)}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(state, out, metadata)
    uri = f"{architecture}:{out}"
    try:
        card = load(uri).card
    except UserError:
        # What cannot be loaded is not left behind.
        out.unlink()
        raise
    assert isinstance(card, AdapterCard)
    return Converted(uri, sha256(out), card)


def _network(root: Any, name: str, source: Path) -> Record:
    found = root.get(name) if isinstance(root, Mapping) else None
    if isinstance(found, Record):
        return found
    has = ", ".join(map(str, root)) if isinstance(root, Mapping) else type(root).__name__
    raise UserError(f"{str(source)!r} holds no network {name!r}; it holds: {has}")


def _architecture(record: Record, source: Path) -> str:
    modules = record.state.get("_modules") or {}
    synthesis = modules.get("synthesis")
    parts = (synthesis.state.get("_modules") or {}) if isinstance(synthesis, Record) else {}
    if "mapping" in modules and "b4" in parts:
        return "stylegan2-ada"
    if "mapping" in modules and "input" in parts:
        return "stylegan3"
    raise UserError(
        f"{str(source)!r}: {record.class_name} is neither StyleGAN2-ADA's nor StyleGAN3's generator"
    )


def _collect(record: Record, prefix: str, state: dict[str, Tensor]) -> None:
    """Parameters and persistent buffers by their names in a state dict."""
    temporary = record.state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (record.state.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in temporary:
                state[prefix + name] = value.float()
    for name, child in (record.state.get("_modules") or {}).items():
        if isinstance(child, Record):
            _collect(child, f"{prefix}{name}.", state)


def _plain(value: Any) -> Any:
    """Arguments as JSON can hold them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return _plain(value.tolist())
    if isinstance(value, torch.device):
        return str(value)
    return value
