"""What this machine and installation provide, and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import Literal

import torch

from ptgm_fast import __version__, generators
from ptgm_fast.errors import UserError
from ptgm_fast.kernels import dispatch

EXTRAS = {"timm": "timm", "torchvision": "torchvision", "mlxtend": "demo"}


@dataclass(frozen=True)
class Finding:
    """state: "ok"; "missing" (optional, the detail says what is lost); "broken" (must be repaired)."""

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str


def examine() -> list[Finding]:
    """All findings, in display order. Read-only: looks, loads and compares, but changes nothing."""
    return [*_platform(), *_device(), *_implementations(), *_extras(), *_bundled()]


def _platform() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding(
            "ptgm-fast",
            "ok",
            f"{__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        ),
        Finding(
            "processor",
            "ok",
            f"{cores} cores, torch uses {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        ),
    ]


def _device() -> list[Finding]:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [Finding("GPU", "ok", names), _nvml()]
    return [Finding("GPU", "missing", "torch sees no CUDA device; runs use the processor")]


def _nvml() -> Finding:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except (
        Exception
    ) as error:  # nvidia-ml-py raises its own exception types, or OSError without a driver
        return Finding("NVML", "missing", f"no hardware counters ({error})")
    return Finding("NVML", "ok", f"driver {version}")


def _implementations() -> list[Finding]:
    return [
        Finding(f"op {s.op}, {s.impl}", "ok" if s.available else "missing", s.reason or "available")
        for s in dispatch.status()
    ]


def _extras() -> list[Finding]:
    findings = []
    for package, extra in EXTRAS.items():
        try:
            importlib.import_module(package)
            findings.append(Finding(package, "ok", importlib.metadata.version(package)))
        except ImportError as error:
            state: Literal["missing", "broken"] = "missing" if error.name == package else "broken"
            findings.append(Finding(package, state, f"{error}; pip install 'ptgm-fast[{extra}]'"))
    return findings


def _bundled() -> list[Finding]:
    try:
        generators.load("letters")
        generators.load_classifier("letters")
    except UserError as error:
        return [Finding("bundled source pair", "broken", f"{error}")]
    card = generators.load_card("letters")
    return [
        Finding(
            "bundled source pair",
            "ok",
            f"{card.name}: {card.num_classes} classes, weights match their card",
        )
    ]
