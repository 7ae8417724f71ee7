"""NVIDIA's pickles: converted networks are equal, none of their code runs, anything but a network is refused."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators.adapters.convert import convert

sys.path.insert(0, str(Path(__file__).parent))
from test_stylegan import DEEP, NARROW, SIZES, built, randomized, with_filters

TWO = SIZES | {"synthesis_kwargs": NARROW | {"num_fp16_res": 4, "conv_clamp": 256}}
THREE = SIZES | DEEP | {"img_resolution": 32}


class EasyDict(dict):
    """Pickled under the name of dnnlib's EasyDict."""


class Persistent:
    """Pickled as by torch_utils.persistence: a function, and a dict with the source code and the attributes."""

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
    """The modules under whose names the objects are pickled; removed before they are read."""
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
    # Only our modules have typed options; NVIDIA's pickles do not contain them.
    state.pop("config", None)
    return Persistent(class_name, state)


def write(path: Path, architecture: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    network = built(architecture, config)
    state = randomized(network)
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
    """Pickled as a call, and a state to set on its result."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


STORAGE = torch.storage._load_from_bytes
ARRAY = np.empty(0).__reduce__()[0]
SCALAR = np.float32(0).__reduce__()[0]


def rebuilt(
    storage: Any, offset: int = 0, size: tuple[int, ...] = (1,), stride: tuple[int, ...] = (1,)
) -> Malicious:
    return Malicious(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def network(**state: Any) -> dict[str, Any]:
    """A snapshot with only what is read first."""
    empty = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    inner = {"b4": Persistent("SynthesisBlock", empty)}
    parts = {
        "mapping": Persistent("MappingNetwork", empty),
        "synthesis": Persistent("SynthesisNetwork", empty | {"_modules": inner}),
    }
    made = empty | {"_modules": parts, "_init_kwargs": {"z_dim": 1, "c_dim": 2}} | state
    return {"G_ema": Persistent("Generator", made)}


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
            network(_parameters={"w": rebuilt(Malicious(STORAGE, inner.getvalue()))}),
            r"G_ema: w cannot be read.*Weights only",
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
        (whole[: len(whole) // 2], "damaged or not a pickle"),
        (b"not a pickle", "damaged or not a pickle"),
        (b"", "damaged or not a pickle"),
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
        network = built("stylegan2-ada", TWO)
        good.write_bytes(pickle.dumps({"G_ema": persistent(network, "Generator", TWO | change)}))
        with pytest.raises(UserError, match=message):
            convert(good, out)
        assert not out.exists()


def test_a_network_of_the_tensorflow_version_is_told_the_way_through(tmp_path: Path) -> None:
    path = tmp_path / "ffhq.pkl"
    path.write_bytes(b"cdnnlib.tflib.network\nNetwork\n.")
    with pytest.raises(UserError, match=r"python legacy\.py --source=ffhq\.pkl"):
        convert(path, tmp_path / "n.safetensors")


def test_arrays_are_not_made(nvidia: None, tmp_path: Path) -> None:
    """Bytes that a pickle declares to be pointers would crash the process; made-up sizes would fill the memory."""
    pointers = b"A" * 8
    fields = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
    structured = Malicious(np.dtype, "V8", False, True, state=fields)
    for made_up in (
        Malicious(ARRAY, np.ndarray, (0,), b"b", state=(1, (1,), structured, False, pointers)),
        Malicious(np.ndarray, (1,), np.dtype("O"), pointers),
        Malicious(np.ndarray, (10**15,), np.dtype("f8")),
        Malicious(SCALAR, structured, pointers),
        Malicious(SCALAR, np.dtype("O"), pointers),
        Malicious(SCALAR, np.dtype("f8"), b"short"),
    ):
        path = tmp_path / "bad.pkl"
        path.write_bytes(pickle.dumps(network(_init_kwargs={"z_dim": made_up, "c_dim": 2})))
        with pytest.raises(UserError, match=r"G_ema: .*(number|damaged|buffer)"):
            convert(path, tmp_path / "out.safetensors")
        # It is ignored as an attribute that is not needed.
        path.write_bytes(pickle.dumps(network(size=made_up)))
        with pytest.raises(UserError, match="w_dim: Field required"):
            convert(path, tmp_path / "out.safetensors")


def test_a_pickle_changes_nothing_that_it_finds(tmp_path: Path) -> None:
    """Setting state on a function or class would change it for the whole process."""
    path = tmp_path / "bad.pkl"
    for place in (
        b"cdnnlib.util\nEasyDict\n",
        b"ccollections\nOrderedDict\n",
        b"cbuiltins\nset\n",
        b"ctorch\nSize\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cnumpy\nndarray\n",
    ):
        # BUILD with a dict of attributes, and with one of slots, which is set by setattr.
        for state in (b"}\x8c\x08__call__K\x01s", b"N}\x8c\x08__call__K\x01s\x86"):
            path.write_bytes(b"\x80\x04" + place + state + b"b.")
            with pytest.raises(UserError, match="damaged or not a pickle"):
                convert(path, tmp_path / "out.safetensors")


def test_names_beside_those_allowed(tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"
    for data, name in (
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x0fstorage.os.path\x93.", "torch.storage.os.path"),
        (b"\x80\x04ctorch.storage\n_load_from_bytes.__globals__\n.", "__globals__"),
        (b"\x80\x04\x8c\x01xQ.", "outside the file"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"asks for .*{name}"):
            convert(path, tmp_path / "out.safetensors")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_damaged_networks(nvidia: None, tmp_path: Path) -> None:
    stored = io.BytesIO()
    torch.save(torch.zeros(4).storage(), stored, _use_new_zipfile_serialization=False)
    storage = Malicious(STORAGE, stored.getvalue())
    endless: dict[str, Any] = {"z_dim": 1}
    endless["again"] = endless
    path = tmp_path / "bad.pkl"
    for state, message in (
        ({"_parameters": {"w": rebuilt(storage, 2, (4,))}}, "w cannot be read"),
        ({"_parameters": {"w": rebuilt(storage, 0, (3,), (2,))}}, "w cannot be read"),
        ({"_parameters": {"w": rebuilt(storage, -1)}}, "w cannot be read"),
        ({"_parameters": {"w": rebuilt(storage, 0, (10**12,), (0,))}}, "4 numbers for the shape"),
        ({"_parameters": {"w": rebuilt(1)}}, "w cannot be read: it is damaged"),
        ({"_buffers": {"w": 3}}, "w cannot be read: it is not a tensor"),
        ({"_buffers": [1]}, r"Generator\._buffers is a list"),
        ({"_modules": [1]}, "is neither a StyleGAN2-ADA nor"),
        ({"_init_kwargs": endless}, "nested too deeply"),
        ({"_init_kwargs": {"z_dim": {1}}}, "a set is neither a number"),
        ({"_init_kwargs": {}}, "are missing"),
    ):
        path.write_bytes(pickle.dumps(network(**state)))
        with pytest.raises(UserError, match=message):
            convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_stylegan2_of_stylegan3s_repository(nvidia: None, tmp_path: Path) -> None:
    """Its arguments are not nested, and only its layers know its default clamp."""
    network = built("stylegan2-ada", TWO)
    state = randomized(network)
    with_filters(state, TWO)
    network.load_state_dict(state)
    flat = {k: v for k, v in TWO.items() if k != "synthesis_kwargs"} | NARROW
    flat |= {"num_fp16_res": 4, "fused_modconv_default": "inference_only", "c_dim": np.int64(5)}
    top = persistent(network, "Generator", flat)
    top.state["_modules"]["synthesis"].state["_modules"]["b4"].state["_modules"]["conv1"].state[
        "conv_clamp"
    ] = 256
    (tmp_path / "n.pkl").write_bytes(pickle.dumps({"G_ema": top}))
    done = convert(tmp_path / "n.pkl", tmp_path / "n.safetensors")
    found = generators.load(done.uri).network  # type: ignore[union-attr]
    assert all(torch.equal(found.state_dict()[name], value) for name, value in state.items())
    assert found.config == network.config.model_copy(
        update={
            "synthesis_kwargs": network.config.synthesis_kwargs.model_copy(
                update={"fused_modconv_default": "inference_only"}
            )
        }
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_changed_byte_is_another_number_or_an_error(
    data: st.DataObject, nvidia: None, tmp_path: Path
) -> None:
    path, out = tmp_path / "n.pkl", tmp_path / "out.safetensors"
    whole = tmp_path / "whole.pkl"
    if not whole.exists():
        small = TWO | {"img_resolution": 4}
        write(whole, "stylegan2-ada", small)
    changed = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    out.unlink(missing_ok=True)
    try:
        done = convert(path, out)
    except UserError:
        assert not out.exists()
    else:
        assert done.card.latent_dim == 6
