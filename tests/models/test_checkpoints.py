"""Weights as training scripts save them: wrapped, prefixed, beside others."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from ptgm_fast import models
from ptgm_fast.errors import UserError
from ptgm_fast.models.checkpoints import fitting
from ptgm_fast.models.weights import read_state

State = dict[str, Tensor]


def network(outputs: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, outputs))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def optimizer_state() -> dict[str, Any]:
    """Of Adam after a step: tensors under numbers."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 1, 3, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def averaged(state: State) -> State:
    net = network()
    net.load_state_dict(state)
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


WRAPPED: dict[str, tuple[Callable[[State], Any], str]] = {
    "data parallel": (lambda s: prefixed(s, "module."), "under 'module'"),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), "under '_orig_mod'"),
    "both": (lambda s: prefixed(s, "module._orig_mod."), "under 'module._orig_mod'"),
    "a part in parallel": (
        lambda s: {k.replace("1.", "1.module.", 1) if k[0] == "1" else k: s[k] for k in s},
        "without '_orig_mod' and 'module' in its names",
    ),
    "a part compiled": (
        lambda s: {
            "model": {k.replace("0.", "0._orig_mod.", 1) if k[0] == "0" else k: s[k] for k in s}
        },
        "under 'model' without '_orig_mod'",
    ),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet"}, "'state_dict'"),
    "model": (lambda s: {"model": s, "optimizer": optimizer_state()}, "under 'model'"),
    "model_ema": (lambda s: {"model_ema": s, "epoch": 1}, "under 'model_ema'"),
    "ema_model": (lambda s: {"ema_model": prefixed(s, "module.")}, "under 'ema_model.module'"),
    "nested": (lambda s: {"state": {"net": s}, "step": torch.tensor(3)}, "under 'state.net'"),
    "average": (averaged, "under 'module'"),
    "lightning": (
        lambda s: {
            "epoch": 3,
            "state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(4)},
            "optimizer_states": [optimizer_state()],
            "hyper_parameters": {"lr": 0.1},
        },
        "under 'state_dict.model'",
    ),
    "another network beside it": (
        lambda s: {"classifier": s, "generator": network(outputs=9).state_dict()},
        "under 'classifier'",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_weights_are_found_and_it_is_said_where(name: str, tmp_path: Path) -> None:
    expected = network(seed=1).state_dict()
    wrap, said = WRAPPED[name]
    torch.save(wrap(expected), tmp_path / "w.pt")
    module, notices = network(seed=2), []
    models.load_weights(module, tmp_path / "w.pt", on_notice=notices.append)
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
    assert len(notices) == 1
    assert said in notices[0]


def test_plain_weights_are_loaded_without_a_word(tmp_path: Path) -> None:
    state = network(seed=1).state_dict()
    torch.save(state, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            models.load_weights(network(), tmp_path / name)


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    save_file(prefixed(network(seed=1).state_dict(), "backbone."), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="under 'backbone'"):
        models.load_weights(network(), tmp_path / "w.safetensors")


def test_of_several_the_user_chooses(tmp_path: Path) -> None:
    states = {name: network(seed=i).state_dict() for i, name in enumerate(["model", "ema_model"])}
    file = tmp_path / "w.pt"
    torch.save({**states, "it": 1}, file)
    with pytest.raises(UserError, match=r"several that fit: 'model', 'ema_model'.*FILE#model"):
        models.load_weights(network(), file)
    for name, state in states.items():
        module = network(seed=5)
        models.load_weights(module, f"{file}#{name}", on_notice=lambda message: None)
        assert torch.equal(module[0].weight, state["0.weight"])
        assert torch.equal(read_state(f"{file}#{name}")["0.weight"], state["0.weight"])
    with pytest.raises(UserError, match=r"has no 'teacher': 'model', 'ema_model'"):
        models.load_weights(network(), f"{file}#teacher")
    for path in (file, f"{file}#teacher"):
        with pytest.raises(UserError, match="'model', 'ema_model'"):
            read_state(path)


def test_students_and_teachers_of_lightning(tmp_path: Path) -> None:
    student, teacher = network(seed=1).state_dict(), network(seed=2).state_dict()
    both = prefixed(student, "student.") | prefixed(teacher, "teacher.")
    torch.save({"state_dict": both}, tmp_path / "w.ckpt")
    with pytest.raises(UserError, match=r"'state_dict\.student', 'state_dict\.teacher'"):
        models.load_weights(network(), tmp_path / "w.ckpt")
    module = network()
    path = f"{tmp_path / 'w.ckpt'}#state_dict.teacher"
    models.load_weights(module, path, on_notice=lambda message: None)
    assert torch.equal(module[3].weight, teacher["3.weight"])


def test_a_file_with_a_sharp_in_its_name(tmp_path: Path) -> None:
    torch.save(network(seed=1).state_dict(), tmp_path / "w#1.pt")
    torch.save({"a": network(seed=1).state_dict()}, tmp_path / "v#1.pt")
    models.load_weights(network(), tmp_path / "w#1.pt")
    models.load_weights(network(), f"{tmp_path / 'v#1.pt'}#a", on_notice=lambda message: None)


def test_what_does_not_fit_is_named_by_the_modules_own_names(tmp_path: Path) -> None:
    torch.save({"model": prefixed(network(9).state_dict(), "module.")}, tmp_path / "w.pt")
    message = r"under 'model\.module' does not fit[\s\S]*3\.bias \[9\] \(expected \[4\]\)"
    with pytest.raises(UserError, match=message):
        models.load_weights(network(), tmp_path / "w.pt")
    state = network().state_dict()
    del state["3.bias"]
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"does not fit[\s\S]*missing: 3\.bias$"):
        models.load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("loaded", [{}, {"epoch": 3}, [1, 2], {"models": [{}]}, {0: {}}])
def test_files_without_weights(loaded: Any, tmp_path: Path) -> None:
    torch.save(loaded, tmp_path / "w.pt")
    for read in (lambda path: models.load_weights(network(), path), read_state):
        with pytest.raises(UserError, match="does not hold a state dict"):
            read(tmp_path / "w.pt")


@pytest.mark.parametrize("extra", [argparse.Namespace(lr=1), Path("run")])
def test_objects_beside_the_weights_are_not_executed(extra: Any, tmp_path: Path) -> None:
    torch.save({"model": network().state_dict(), "args": extra}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds more than tensors and was not loaded"):
        models.load_weights(network(), tmp_path / "w.pt")


NAMES = st.sampled_from(["module", "_orig_mod", "model", "net", "state_dict", "ema", "0", "weight"])


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES, max_size=4), st.lists(NAMES, max_size=3), st.booleans())
def test_under_any_prefix_the_same_tensors_are_found(
    dicts: list[str], prefix: list[str], beside: bool
) -> None:
    own = network(seed=1).state_dict()
    loaded: Any = prefixed(own, "".join(f"{name}." for name in prefix))
    for name in reversed(dicts):
        loaded = {name: loaded}
    if beside and dicts + prefix:
        loaded["another"] = {"0.weight": torch.zeros(2), "step": torch.tensor(1)}
    found, place = fitting(loaded, network(seed=2).state_dict(), "", where="w")
    assert found.keys() == own.keys()
    assert all(found[key] is own[key] for key in own)
    whole = ".".join(dicts + prefix)
    assert place == (f"under {whole!r}" if whole else "")
