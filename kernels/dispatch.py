"""Dispatch: the only place that chooses which implementation of an op runs.

An op is a folder whose modules are its implementations: ``reference`` (always present), ``cpu_impl`` (C++, CPU
tensors) and ``triton_impl`` (CUDA and ROCm tensors). Implementations are imported on first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

IMPLEMENTATIONS = ("reference", "cpu", "triton")
# An op is a folder beside this file.
OPS = tuple(sorted(p.parent.name for p in Path(__file__).parent.glob("*/reference.py")))
# Must match DType in csrc/common.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
_MODULES = {"reference": "reference", "cpu": "cpu_impl", "triton": "triton_impl"}
_FASTEST = {"cpu": "cpu", "cuda": "triton"}
_log = logging.getLogger("ptgm_fast.kernels")
_said: set[tuple[str, str, str]] = set()
_in_forked_process = False


class ImplementationError(RuntimeError):
    """The requested implementation cannot run here; the message says why."""


@dataclass(frozen=True)
class Status:
    """Whether one implementation of one op can run on this machine, and if not, why."""

    op: str
    impl: str
    available: bool
    reason: str


def select(op: str, device: torch.device, impl: str | None = None, *, unfit: str = "") -> str:
    """Return the name of the implementation that runs `op` on `device`: `impl` if given, else the fastest available.

    unfit: why the fused implementations cannot take these arguments (e.g. float64 logits); empty if they can.
    Raises ValueError for an unknown name and ImplementationError if the requested implementation cannot run: an
    explicit request never falls back. An automatic choice that is not the fastest is logged once.
    """
    if impl is None:
        return _automatic(op, device.type) if not unfit else _fall_back(op, device.type, unfit)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {impl!r}; accepted: {', '.join(IMPLEMENTATIONS)} or None"
        )
    reason = why_not(op, impl, device.type) or (unfit if impl != "reference" else "")
    if reason:
        raise ImplementationError(f"{op}: implementation {impl!r} cannot run: {reason}")
    return impl


@functools.cache
def module_for(op: str, device_type: str, impl: str | None, unfit: str = "") -> ModuleType:
    """Return the module that `select` chooses; cached, since every call needs it."""
    return implementation(op, select(op, torch.device(device_type), impl, unfit=unfit))


@functools.cache
def implementation(op: str, impl: str) -> ModuleType:
    """Return the module that implements `op`, imported on first use."""
    return importlib.import_module(f".{op}.{_MODULES[impl]}", __package__)


@functools.cache
def _automatic(op: str, device_type: str) -> str:
    fastest = _FASTEST.get(device_type)
    if fastest is None:
        return _fall_back(op, device_type, f"there is no implementation for {device_type}")
    reason = why_not(op, fastest, device_type)
    return fastest if not reason else _fall_back(op, device_type, reason)


def _fall_back(op: str, device_type: str, reason: str) -> str:
    if (op, device_type, reason) not in _said:
        _said.add((op, device_type, reason))
        _log.warning("%s falls back to the PyTorch reference on %s: %s", op, device_type, reason)
    return "reference"


@functools.cache
def has(op: str, impl: str) -> bool:
    """Whether this version of the package includes this implementation of `op`."""
    return importlib.util.find_spec(f".{op}.{_MODULES[impl]}", __package__) is not None


@functools.cache
def why_not(op: str, impl: str, device_type: str) -> str:
    """Return why an implementation cannot run on a device type; empty if it can."""
    if not has(op, impl):
        return "this version has no such implementation"
    if impl == "cpu":
        return _extension_lacks(op) if device_type == "cpu" else _takes("CPU", device_type)
    if impl == "triton":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed (Linux only): pip install triton"
        return "" if device_type == "cuda" or _interpreting() else _takes("CUDA", device_type)
    return ""


def _takes(kind: str, device_type: str) -> str:
    there = (
        "" if kind == "CPU" or torch.cuda.is_available() else ", and there is no CUDA device here"
    )
    return f"it takes {kind} tensors, got {device_type}{there}"


def _interpreting() -> bool:
    # Parsed as Triton does. Its interpreter runs the kernels on CPU tensors, for tests.
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@functools.cache
def extension_missing() -> str:
    """Return why the C++ extension cannot be loaded; empty if it can."""
    try:
        importlib.import_module("ptgm_fast._C")
    except ImportError as error:
        files = [
            str(p)
            for f in importlib.import_module("ptgm_fast").__path__
            for p in Path(f).glob("_C*.so")
        ]
        if files:
            return f"the C++ extension {files[0]} cannot be loaded ({error}); rebuild it: pip install -e ."
        return (
            "the C++ extension was not built; reinstall with a C++17 compiler available "
            "(pip install -v -e . shows the compiler's output)"
        )
    return ""


def _extension_lacks(op: str) -> str:
    reason = extension_missing()
    if reason or hasattr(importlib.import_module("ptgm_fast._C"), op):
        return reason
    return "the C++ extension is out of date and lacks this op; rebuild it: pip install -e ."


def status() -> list[Status]:
    """Return the status of every implementation of every op on this machine, without running any."""
    found = []
    for op in OPS:
        for impl in IMPLEMENTATIONS:
            if not has(op, impl):
                continue
            reason = why_not(op, impl, "cuda" if impl == "triton" else "cpu")
            if impl == "triton" and not reason and not torch.cuda.is_available():
                reason = "there is no CUDA device here"
            found.append(Status(op, impl, not reason, reason))
    return found


def is_tracing() -> bool:
    """Whether a compiler, a dispatch mode or a functorch transform observes the operators that run.

    If not, an op bypasses torch's dispatcher, which saves about 20 us forward and 40 us backward per call.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def num_threads() -> int:
    """Return how many threads a C++ implementation may use: torch's setting, or 1 in a forked process.

    The OpenMP pool does not survive a fork: a parallel region would wait for threads that no longer exist.
    """
    return 1 if _in_forked_process else torch.get_num_threads()


def _after_fork() -> None:
    global _in_forked_process
    _in_forked_process = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
