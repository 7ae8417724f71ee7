"""Hardware counters: a GPU's by a stand-in for NVML, a machine without one, bounded memory."""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ptgm_fast.cli.ui import served_from
from ptgm_fast.profiling.hardware import HardwareSampler
from ptgm_fast.profiling.spans import SpanRecorder
from ptgm_fast.profiling.summary import build_profile


class FakeNVML:
    """pynvml as far as it is asked; `missing` calls fail as on a GPU that does not know them."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, *missing: str) -> None:
        self.missing, self.asked, self.closed, self.millijoules = missing, [], False, 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            if name in self.missing:
                raise RuntimeError("Not Supported")
            self.millijoules += 500_000
            return {
                "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87),
                "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * 2**30),
                "nvmlDeviceGetPowerUsage": 250_000,
                "nvmlDeviceGetClockInfo": 1980,
                "nvmlDeviceGetTemperature": 61,
                "nvmlDeviceGetTotalEnergyConsumption": self.millijoules,
            }.get(name)

        return call


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine whose torch has a GPU of a known UUID."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc-1")
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)

    def install(nvml: Any) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)

    return install


def sampled(images: int | None = None) -> Any:
    sampler = HardwareSampler("cuda", interval=0.01)
    sampler.start()
    time.sleep(0.08)
    return sampler.stop(images)


def test_a_gpus_counters_by_a_stand_in(fake_gpu: Any) -> None:
    nvml = FakeNVML()
    fake_gpu(nvml)
    hardware = sampled(images=1000)
    gauges = {g.name: g.mean for g in hardware.gauges}
    assert gauges["gpu utilisation"] == 87
    assert gauges["gpu power"] == 250
    assert gauges["gpu clock"] == 1980
    assert gauges["gpu temperature"] == 61
    assert gauges["gpu memory"] == 3 * 2**30
    assert hardware.peak_gpu_bytes == 123
    assert hardware.gpu_joules is not None
    assert hardware.gpu_joules > 0
    assert hardware.joules_per_image == pytest.approx(hardware.gpu_joules / 1000)
    assert hardware.notes == ()
    assert ("nvmlDeviceGetHandleByUUID", "GPU-abc-1") in nvml.asked
    assert nvml.asked[-1] == ("nvmlShutdown",)


def test_what_a_pool_saved_is_told_in_joules_at_the_mean_power(fake_gpu: Any) -> None:
    fake_gpu(FakeNVML())
    hardware, recorder = sampled(images=1000), SpanRecorder(torch.device("cpu"))
    with recorder("pp"):
        time.sleep(0.01)
    facts = {
        "images_synthesized": 100,
        "images_served": 400,
        "reuse": 4.0,
        "pool_bytes": 2**20,
        "seconds_saved": 30.0,
    }
    profile = build_profile(
        recorder, hardware, device="cuda", versions={}, complete=True, facts={"pp": facts}
    )
    (pp,) = profile.stages
    assert pp.joules_saved == pytest.approx(30.0 * hardware.gpu_joules / profile.seconds)
    assert (
        served_from(pp.pool_bytes, pp.reuse, pp.seconds_saved, 4560.0)
        == " from a pool of 1 MiB (4.0 times each), about 30 s and 4.6 kJ of synthesis saved"
    )


def test_without_an_energy_counter_power_is_integrated_and_what_is_missing_is_said_once(
    fake_gpu: Any,
) -> None:
    fake_gpu(FakeNVML("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature"))
    started = time.perf_counter()
    hardware = sampled()
    assert hardware.gpu_joules is not None
    assert 0 < hardware.gpu_joules <= 250 * (time.perf_counter() - started)
    assert hardware.joules_per_image is None
    assert [n for n in hardware.notes if "temperature" in n] == list(hardware.notes)
    assert len(hardware.notes) == 1


@pytest.mark.parametrize("nvml", [None, FakeNVML("nvmlInit")], ids=["absent", "failing"])
def test_no_nvml_is_one_line(fake_gpu: Any, nvml: Any) -> None:
    fake_gpu(nvml)
    hardware = sampled()
    assert len(hardware.notes) == 1
    assert "not available" in hardware.notes[0]
    assert "\n" not in hardware.notes[0]
    assert {g.name for g in hardware.gauges} == {"process cpu", "machine cpu", "rss"}


def test_samples_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptgm_fast.profiling.hardware.MAX_SAMPLES", 8)
    sampler = HardwareSampler(interval=0.001)
    sampler.start()
    time.sleep(0.2)
    hardware = sampler.stop()
    assert hardware.samples <= 9
    assert hardware.seconds_between_samples > 0.001
