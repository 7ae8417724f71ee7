"""The choice of an implementation: by device or name, logged if it is not the fastest, imported only when needed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from ptgm_fast import kernels
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.dispatch import ImplementationError
from ptgm_fast.kernels.launch import unit_of

CPU, CUDA, META = (torch.device(kind) for kind in ("cpu", "cuda", "meta"))
CACHED = ("_automatic", "module_for", "has", "why_not", "extension_missing")


def forget() -> None:
    for name in CACHED:
        getattr(dispatch, name).cache_clear()
    dispatch._said.clear()


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    forget()
    yield
    forget()


def break_extension(monkeypatch: pytest.MonkeyPatch, message: str = "no module") -> None:
    real = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        if name == "ptgm_fast._C":
            raise ImportError(message)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


def run(code: str, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_op_has_its_folder_and_its_public_function() -> None:
    folder = Path(kernels.__file__).parent
    found = {p.parent.name for p in folder.glob("*/reference.py")}
    assert found == set(dispatch.OPS)
    for op in dispatch.OPS:
        assert callable(getattr(dispatch.implementation(op, "reference"), op))
        assert callable(getattr(importlib.import_module(f"ptgm_fast.kernels.{op}"), op))


def test_the_public_names_are_there() -> None:
    for name in kernels.__all__:
        assert callable(getattr(kernels, name))


def test_a_named_implementation_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for op in dispatch.OPS:
        if dispatch.has(op, "triton"):
            with pytest.raises(ImplementationError, match="got cpu, and there is no CUDA device"):
                dispatch.select(op, CPU, "triton")
        if dispatch.has(op, "cpu"):
            with pytest.raises(ImplementationError, match="it takes CPU tensors, got cuda"):
                dispatch.select(op, CUDA, "cpu")
    if not dispatch.extension_missing():
        with pytest.raises(ImplementationError, match="cannot run: too odd"):
            dispatch.select("consistency", CPU, "cpu", unfit="too odd")
    assert dispatch.select("consistency", CPU, "reference", unfit="too odd") == "reference"


def test_the_reason_when_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "triton" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(ImplementationError, match="the package triton is not installed"):
        dispatch.select("consistency", CUDA, "triton")
    assert dispatch.select("consistency", CUDA) == "reference"


def test_an_unknown_implementation_is_named_with_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match="'cuda'; accepted: reference, cpu, triton or None"):
        dispatch.select("consistency", CPU, "cuda")


def test_the_reason_when_the_extension_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ptgm_fast.__path__", [str(tmp_path)])
    break_extension(monkeypatch)
    with pytest.raises(ImplementationError, match="was not built; reinstall with a C"):
        dispatch.select("consistency", CPU, "cpu")
    forget()
    (tmp_path / "_C.cpython-00.so").touch()
    break_extension(monkeypatch, "undefined symbol: x")
    with pytest.raises(ImplementationError, match=r"_C\S+so cannot be loaded \(undefined symbol"):
        dispatch.select("consistency", CPU, "cpu")


def test_the_reason_when_the_extension_is_older_than_the_op(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if reason := dispatch.extension_missing():
        pytest.skip(reason)
    from ptgm_fast import _C

    monkeypatch.delattr(_C, "consistency")
    with pytest.raises(ImplementationError, match="out of date and lacks this op"):
        dispatch.select("consistency", CPU, "cpu")
    assert dispatch.select("pseudo_label", CPU, "cpu") == "cpu"


def test_a_slower_choice_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_extension(monkeypatch, "planted")
    op = importlib.import_module("ptgm_fast.kernels.pseudo_label")._pseudo_label
    # Another test of this process may have called it.
    monkeypatch.setattr(op, "_functions", {})
    logits = torch.randn(4, 5)
    with caplog.at_level(logging.WARNING, "ptgm_fast.kernels"):
        for _ in range(3):
            kernels.pseudo_label(logits)
            kernels.pseudo_label(logits.double())
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all(
        t.startswith("pseudo_label falls back to the PyTorch reference on cpu: ") for t in texts
    )
    assert "float64" in texts[1]


def test_the_fastest_is_chosen_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ptgm_fast.kernels"):
        if not dispatch.why_not("consistency", "cpu", "cpu"):
            assert dispatch.select("consistency", CPU) == "cpu"
        if not dispatch.why_not("consistency", "triton", "cuda"):
            assert dispatch.select("consistency", CUDA) == "triton"
        assert not caplog.records
        assert dispatch.select("consistency", META) == "reference"
    assert "there is no implementation for meta" in caplog.text


def test_status_tells_what_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = {(s.op, s.impl): s for s in dispatch.status()}
    for op in dispatch.OPS:
        assert status[op, "reference"].available
        for impl in ("cpu", "triton"):
            assert ((op, impl) in status) == dispatch.has(op, impl)
    for (_, impl), entry in status.items():
        assert entry.available == (entry.reason == "")
        if impl == "triton":
            assert entry.reason == "there is no CUDA device here"


def test_importing_is_cold() -> None:
    """Importing loads no Triton, compiler or C++ extension and does not touch CUDA; the status does not load Triton."""
    code = """
import sys
from ptgm_fast import kernels
import torch
from ptgm_fast.kernels import dispatch
cold = ("triton", "ptgm_fast._C", "torch._inductor", "torch._dynamo")
print([m for m in cold if m in sys.modules])
dispatch.status()
print("triton" in sys.modules, torch.cuda.is_initialized())
"""
    assert run(code).splitlines() == ["[]", "False False"]


def test_triton_runs_cpu_tensors_under_its_interpreter_only() -> None:
    code = """
import torch
from ptgm_fast.kernels import dispatch
print(dispatch.why_not("consistency", "triton", "cpu") == "", dispatch.select("consistency", torch.device("cpu")))
"""
    fastest = dispatch.select("consistency", CPU)
    assert run(code, TRITON_INTERPRET="1") == f"True {fastest}"
    assert run(code, TRITON_INTERPRET="0") == f"False {fastest}"


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_one_thread_in_a_forked_process() -> None:
    code = """
import os, torch
from ptgm_fast.kernels import dispatch
torch.set_num_threads(3)
assert dispatch.num_threads() == 3
child = os.fork()
if child == 0:
    os._exit(dispatch.num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), dispatch.num_threads())
"""
    assert run(code) == "1 3"


def test_whoever_watches_operators_is_noticed() -> None:
    tensor = torch.zeros(2, 3)
    assert not dispatch.is_tracing()
    with FakeTensorMode():
        assert dispatch.is_tracing()
    seen = []

    def look(t: torch.Tensor) -> torch.Tensor:
        seen.append(dispatch.is_tracing())
        return t.sum()

    torch.vmap(look)(tensor)
    torch.func.grad(look)(tensor)
    assert seen == [True, True]

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(t: torch.Tensor) -> torch.Tensor:
        return t + dispatch.is_tracing()

    assert torch.equal(compiled(tensor), tensor + 1)


def test_a_tensor_of_another_type_goes_through_torch() -> None:
    seen = []

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    logits = torch.randn(4, 5)
    made = kernels.pseudo_label(logits.as_subclass(Own))
    assert torch.ops.ptgm_fast.pseudo_label.default in seen
    assert torch.equal(made.labels, kernels.pseudo_label(logits).labels)


@pytest.mark.parametrize(
    ("lengths", "unit"), [((1000, 1000), 8), ((1024, 64), 16), ((21841, 0), 1), ((10, 48), 2)]
)
def test_units_of_lengths(lengths: tuple[int, ...], unit: int) -> None:
    assert unit_of(*lengths) == unit
