"""Hardware counters during a run, sampled in a thread: processor and memory with psutil, a GPU with NVML."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import platform
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

from ptgm_fast.profiling.schema import Gauge, Hardware

INTERVAL = 0.5
# At this many samples, every other one is dropped and the interval doubles: long runs need no more memory.
MAX_SAMPLES = 4096

UNITS = {
    "process cpu": "% of one core",
    "machine cpu": "%",
    "rss": "bytes",
    "gpu utilisation": "%",
    "gpu memory": "bytes",
    "gpu power": "W",
    "gpu clock": "MHz",
    "gpu temperature": "°C",
}


class Sample(NamedTuple):
    """time: nanoseconds of `time.perf_counter_ns`; values: by the names in `UNITS`."""

    time: int
    values: dict[str, float]


class GPU:
    """Counters of one GPU. Raises whatever NVML raises, including ImportError and OSError."""

    def __init__(self, device: torch.device) -> None:
        self._nvml = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        # torch's device numbers follow CUDA_VISIBLE_DEVICES, NVML's do not; the UUID is the same in both.
        self._handle = (
            self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            if uuid
            else self._nvml.nvmlDeviceGetHandleByIndex(device.index or 0)
        )
        nvml, gpu = self._nvml, self._handle
        self._readers: dict[str, Callable[[], float]] = {
            "gpu utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "gpu memory": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
            "gpu power": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "gpu clock": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            "gpu temperature": lambda: nvml.nvmlDeviceGetTemperature(
                gpu, nvml.NVML_TEMPERATURE_GPU
            ),
        }

    def read(self) -> tuple[dict[str, float], list[str]]:
        """Values by name, and a note for each one that this GPU does not provide; those are not read again."""
        values, notes = {}, []
        for name, reader in list(self._readers.items()):
            try:
                values[name] = float(reader())
            # NVML raises its own exception types, and others when the driver goes away.
            except Exception as error:
                del self._readers[name]
                notes.append(f"{name}: not available ({error})")
        return values, notes

    def joules(self) -> float | None:
        """The GPU's energy counter, which only some GPUs have."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except Exception:  # as above
            return None

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._nvml.nvmlShutdown()


class HardwareSampler:
    """Samples every `interval` seconds between `start` and `stop`, in a daemon thread.

    If `device` is a GPU, its counters are read too; if NVML is missing or fails, one note says so and the rest continues.
    """

    def __init__(self, device: torch.device | str = "cpu", *, interval: float = INTERVAL) -> None:
        self.samples: list[Sample] = []
        self.notes: list[str] = []
        self._device = torch.device(device)
        self._interval = interval
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hardware sampler", daemon=True)
        self._gpu: GPU | None = None
        if self._device.type == "cuda":
            try:
                self._gpu = GPU(self._device)
            # A missing package, library or driver, each with its own exception type.
            except Exception as error:
                self.notes.append(f"GPU counters: not available ({error})")
        self._joules = self._gpu.joules() if self._gpu else None

    def start(self) -> None:
        self._process.cpu_percent()
        psutil.cpu_percent()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        values = {
            "process cpu": self._process.cpu_percent(),
            "machine cpu": psutil.cpu_percent(),
            "rss": float(self._process.memory_info().rss),
        }
        if self._gpu:
            gpu_values, notes = self._gpu.read()
            values.update(gpu_values)
            self.notes += notes
        self.samples.append(Sample(time.perf_counter_ns(), values))
        if len(self.samples) >= MAX_SAMPLES:
            del self.samples[::2]
            self._interval *= 2

    def stop(self, images: int | None = None) -> Hardware:
        """Stop the thread and return what it recorded. images: number of images, for the energy per image."""
        self._stop.set()
        self._thread.join()
        self._sample()
        joules = self._used_joules()
        if self._gpu:
            self._gpu.close()
        peak_gpu = (
            torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
        )
        return Hardware(
            processor=f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
            cores=psutil.cpu_count() or 1,
            samples=len(self.samples),
            seconds_between_samples=self._interval,
            gauges=tuple(self._gauges()),
            # The kernel's own maximum may lag behind the latest sample.
            peak_rss_bytes=max(_peak_rss() or 0, *(int(s.values["rss"]) for s in self.samples)),
            peak_gpu_bytes=peak_gpu,
            gpu_joules=joules,
            joules_per_image=joules / images if joules is not None and images else None,
            notes=tuple(self.notes),
        )

    def _gauges(self) -> list[Gauge]:
        gauges = []
        for name, unit in UNITS.items():
            values = [s.values[name] for s in self.samples if name in s.values]
            if values:
                mean = sum(values) / len(values)
                gauges.append(Gauge(name=name, unit=unit, mean=mean, greatest=max(values)))
        return gauges

    def _used_joules(self) -> float | None:
        if not self._gpu:
            return None
        now = self._gpu.joules()
        if now is not None and self._joules is not None:
            return now - self._joules
        points = [
            (s.time / 1e9, s.values["gpu power"]) for s in self.samples if "gpu power" in s.values
        ]
        if len(points) < 2:
            return None
        # No counter: the trapezoidal rule over the sampled power.
        return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in itertools.pairwise(points))


def _peak_rss() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak if platform.system() == "Darwin" else peak * 1024
