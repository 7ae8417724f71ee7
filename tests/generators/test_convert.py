"""NVIDIA's pickles: networks come out equal, nothing of them runs, what is no network is refused."""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators.convert import convert
from ptgm_fast.generators.stylegan2 import StyleGAN2Network
from ptgm_fast.generators.stylegan3 import StyleGAN3Network

sys.path.insert(0, str(Path(__file__).parent))
from test_stylegan import DEEP, NARROW, SIZES, randomised, with_filters

TWO = SIZES | {"synthesis_kwargs": NARROW | {"num_fp16_res": 4, "conv_clamp": 256}}
THREE = SIZES | DEEP | {"img_resolution": 32}


class EasyDict(dict):
    """Pickled under the name of dnnlib's class."""


class Persistent:
    """Pickled as torch_utils.persistence does: a function, and a dict with the source code and the attributes."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> Any:
        source = "raise SystemExit('the source code was run')"
        meta = EasyDict(
            type="class", version=6, module_src=source, class_name=self.class_name, state=self.state
        )
        return reconstruct, (meta,), None


def reconstruct(meta: Any) -> Any:
    raise AssertionError("the pickle's own constructor was called")


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules under whose names the objects are pickled; gone when they are read."""
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"  # fmt: skip
    EasyDict.__module__ = "dnnlib.util"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct  # type: ignore[attr-defined]
    sys.modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]


def persistent(module: torch.nn.Module, class_name: str, config: dict[str, Any]) -> Persistent:
    state = dict(vars(module))
    state.update(
        _modules={n: persistent(m, type(m).__name__, {}) for n, m in module.named_children()},
        _init_args=(),
        _init_kwargs=EasyDict(config),
        size=np.broadcast_to(np.asarray(3), [2]),
        device=torch.device("cpu"),
    )
    # Only our modules have this: typed options, which no pickle of NVIDIA's holds.
    state.pop("config", None)
    return Persistent(class_name, state)


def write(path: Path, architecture: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    network = (
        StyleGAN2Network(config, noise=True, cutoff=None)
        if architecture == "stylegan2-ada"
        else StyleGAN3Network(config, cutoff=None)
    )
    state = randomised(network)
    with_filters(state, config)
    network.load_state_dict(state)
    data = {
        "G": persistent(network, "Generator", config),
        "G_ema": persistent(network, "Generator", config),
        "D": Persistent("Discriminator", {"_modules": {}}),
        "training_set_kwargs": EasyDict(path="/data", use_labels=True),
        "augment_pipe": None,
    }
    path.write_bytes(pickle.dumps(data))
    return state


@pytest.mark.parametrize(("architecture", "config"), [("stylegan2-ada", TWO), ("stylegan3", THREE)])
def test_a_network_comes_out_equal(
    architecture: str, config: dict[str, Any], nvidia: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    state = write(tmp_path / "n.pkl", architecture, config)
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.delitem(sys.modules, name)
    done = convert(tmp_path / "n.pkl", tmp_path / "out" / "n.safetensors")
    assert done.uri == f"{architecture}:{tmp_path / 'out' / 'n.safetensors'}"
    generator = generators.load(f"{done.uri}?sha256={done.sha256}")
    assert generator.card.num_classes == 5
    found = generator.network.state_dict()  # type: ignore[union-attr]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    with pytest.raises(UserError, match="already exists"):
        convert(tmp_path / "n.pkl", tmp_path / "out" / "n.safetensors")


class Malicious:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_code_is_refused_and_not_run(nvidia: None, tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    inner = io.BytesIO()
    torch.save(Malicious(os.mkdir, str(sign)), inner)
    attacks = {
        "a call": (Malicious(os.mkdir, str(sign)), "mkdir"),
        "eval": (Malicious(eval, f"__import__('os').mkdir({str(sign)!r})"), "builtins.eval"),
        "in a network": (
            {"G_ema": Persistent("Generator", {"x": Malicious(os.mkdir, str(sign))})},
            "mkdir",
        ),
        "in a tensor's bytes": (
            {"G_ema": Malicious(torch.storage._load_from_bytes, inner.getvalue())},
            "damaged|Weights only",
        ),
        "a getter": (Malicious(getattr, "text", "upper"), "builtins.getattr"),
    }
    for name, (value, message) in attacks.items():
        path = tmp_path / "bad.pkl"
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=message):
            convert(path, tmp_path / "out.safetensors")
        assert not sign.exists(), name
        assert not (tmp_path / "out.safetensors").exists()


def test_what_is_no_network_is_named(nvidia: None, tmp_path: Path) -> None:
    good, out = tmp_path / "n.pkl", tmp_path / "out.safetensors"
    write(good, "stylegan2-ada", TWO)
    whole = good.read_bytes()
    cases: list[tuple[bytes, str]] = [
        (whole[: len(whole) // 2], "damaged or no pickle"),
        (b"not a pickle", "damaged or no pickle"),
        (b"", "damaged or no pickle"),
        (pickle.dumps({"E": 1}), "holds no network 'G_ema'; it holds: E"),
        (pickle.dumps([1]), "it holds: list"),
        (pickle.dumps({"G_ema": Persistent("Encoder", {})}), "Encoder is neither"),
    ]
    for data, message in cases:
        path = tmp_path / "bad.pkl"
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            convert(path, out)
    write(good, "stylegan2-ada", TWO)
    for arguments, message in (
        ({"network": "D"}, "accepted: G_ema, G"),
        ({"out": tmp_path / "out.pt"}, "must end in .safetensors"),
        ({"source": tmp_path / "missing.pkl"}, "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            convert(**({"source": good, "out": out} | arguments))
    for change, message in (
        ({"c_dim": 0}, "unconditional"),
        ({"c_dim": 4}, "mapping.embed.weight"),
        ({"layers_of_another_version": 3}, "layers_of_another_version"),
    ):
        network = StyleGAN2Network(TWO, noise=True, cutoff=None)
        good.write_bytes(pickle.dumps({"G_ema": persistent(network, "Generator", TWO | change)}))
        with pytest.raises(UserError, match=message):
            convert(good, out)
        assert not out.exists()
