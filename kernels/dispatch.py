"""Which implementation of an op runs: chosen here and nowhere else.

An op is a folder; its implementations are the modules in it: ``reference`` (always), ``cpu_impl`` (C++, CPU
tensors), ``triton_impl`` (CUDA and ROCm tensors). Nothing is imported before it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType

import torch

IMPLEMENTATIONS = ("reference", "cpu", "triton")
OPS = ("latents", "class_mix", "cond_norm_act", "views", "pseudo_label", "consistency")
_MODULES = {"reference": "reference", "cpu": "cpu_impl", "triton": "triton_impl"}
_log = logging.getLogger("ptgm_fast.kernels")


class ImplementationError(RuntimeError):
    """A named implementation cannot run here; the message says why and what to do."""


@dataclass(frozen=True)
class Status:
    """Whether one implementation of one op can run on this machine, and if not, why."""

    op: str
    impl: str
    available: bool
    reason: str


def select(op: str, device: torch.device, impl: str | None = None) -> str:
    """The implementation that runs `op` on `device`: the named one, or the fastest that is available.

    Raises ValueError for an unknown name and ImplementationError when a named one cannot run: it never falls
    back. An automatic choice that is not the fastest is said once in the log.
    """
    if impl is None:
        return _automatic(op, device.type)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {impl!r}; accepted: {', '.join(IMPLEMENTATIONS)} or None"
        )
    reason = why_not(op, impl, device.type)
    if reason:
        raise ImplementationError(f"{op}: implementation {impl!r} cannot run: {reason}")
    return impl


def implementation(op: str, impl: str) -> ModuleType:
    """The module that implements `op`; imported at its first use."""
    return importlib.import_module(f".{op}.{_MODULES[impl]}", __package__)


@functools.cache
def _automatic(op: str, device_type: str) -> str:
    fastest = "cpu" if device_type == "cpu" else "triton"
    if not has(op, fastest):
        return "reference"
    reason = why_not(op, fastest, device_type)
    if not reason:
        return fastest
    _log.warning("%s runs its plain PyTorch reference on %s: %s", op, device_type, reason)
    return "reference"


@functools.cache
def has(op: str, impl: str) -> bool:
    """Whether this version of the package has that implementation at all."""
    return importlib.util.find_spec(f".{op}.{_MODULES[impl]}", __package__) is not None


@functools.cache
def why_not(op: str, impl: str, device_type: str) -> str:
    """Why an implementation cannot run on a kind of device; empty if it can."""
    if not has(op, impl):
        return "this version has no such implementation of it"
    if impl == "cpu":
        return (
            extension_missing()
            if device_type == "cpu"
            else f"it takes CPU tensors, got {device_type}"
        )
    if impl == "triton":
        if device_type not in ("cuda", "xpu"):
            return f"it takes GPU tensors, got {device_type}"
        return "" if importlib.util.find_spec("triton") else "the package triton is not installed"
    return ""


@functools.cache
def extension_missing() -> str:
    """Why the C++ extension cannot be loaded; empty if it can."""
    try:
        importlib.import_module("ptgm_fast._C")
    except ImportError as error:
        return f"the C++ extension is not built ({error}); install again where a C++17 compiler is present"
    return ""


def status() -> list[Status]:
    """Every implementation of every op, for the device that is present; asks, never runs."""
    found = []
    for op in OPS:
        for impl in IMPLEMENTATIONS:
            if not has(op, impl):
                continue
            device = "cuda" if impl == "triton" else "cpu"
            reason = why_not(op, impl, device)
            if impl == "triton" and not reason and not torch.cuda.is_available():
                reason = "no GPU is present"
            found.append(Status(op, impl, not reason, reason))
    return found
