"""Part 1: the machine, and the speed of its memory, matrix units and launches."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

import torch
from device import DEVICE, ON_GPU, ROOT, precision, seconds
from records import Found, Job, NotHere

job = Job(__doc__ or "")
SIDE, COPIED = (64, 2**20) if job.dry else (8192, 2**30)
QUERY = "name,driver_version,mig.mode.current,memory.total,power.limit,clocks.max.sm,clocks.max.mem"


def versions() -> Found:
    import triton

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
    if not ON_GPU:
        found["gpu"] = None
        return ", ".join(f"{k} {v}" for k, v in found.items() if v) + "; no GPU", found
    about = torch.cuda.get_device_properties(0)
    found["gpu"] = about.name
    text = ", ".join(f"{k} {v}" for k, v in found.items())
    return f"{text}; {about.multi_processor_count} SMs, sm_{about.major}{about.minor}", found


def driver() -> Found:
    if not shutil.which("nvidia-smi"):
        raise NotHere("there is no nvidia-smi")
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    values = done.stdout.splitlines()[0].split(", ")
    facts = dict(zip(QUERY.split(","), values, strict=True))
    return f"driver {facts['driver_version']}, MIG {facts['mig.mode.current']}, {facts['power.limit']}", facts  # fmt: skip


def package() -> Found:
    import ptgm_fast
    from ptgm_fast.kernels import dispatch

    reason = dispatch.extension_missing()
    assert not reason, reason
    return f"ptgm-fast {ptgm_fast.__version__}, with its C++ extension"


def doctor() -> Found:
    command = [sys.executable, "-P", "-m", "ptgm_fast", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1:]
    return "ends with 0"


def copy() -> Found:
    x = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    rate = 2 * COPIED / seconds(lambda: y.copy_(x), calls=20) / 1e9
    return f"{rate:,.0f} GB/s, bytes read and written", {"copy_gb_per_s": rate}


def host_copy() -> Found:
    host = torch.empty(COPIED // 4, dtype=torch.uint8, pin_memory=ON_GPU)
    x = torch.empty_like(host, device=DEVICE)
    up = len(host) / seconds(lambda: x.copy_(host, non_blocking=True)) / 1e9
    down = len(host) / seconds(lambda: host.copy_(x, non_blocking=True)) / 1e9
    return f"{up:.1f} GB/s up, {down:.1f} GB/s down, pinned", {"up": up, "down": down}


def products() -> Found:
    a, b = torch.randn(2, SIDE, SIDE, device=DEVICE)
    rates = {}
    for name in ("bfloat16", "tf32", "float32"):
        x, y = (a.bfloat16(), b.bfloat16()) if name == "bfloat16" else (a, b)
        with precision("float32" if name == "float32" else "tf32"):
            rates[name] = 2 * SIDE**3 / seconds(lambda x=x, y=y: x @ y) / 1e12
    text = ", ".join(f"{name} {rate:,.1f}" for name, rate in rates.items())
    return f"{text} TFLOP/s, {SIDE}^3", rates


def launches() -> Found:
    x, num = torch.zeros(1, device=DEVICE), 1000

    def many() -> None:
        for _ in range(num):
            x.add_(1)

    each = seconds(many, calls=5) / num * 1e6
    return f"{each:.1f} µs each, of operators of one element", {"launch_us": each}


def streams() -> Found:
    if not ON_GPU:
        raise NotHere("a CPU has no streams")
    least, greatest = torch.cuda.Stream.priority_range()
    assert greatest < least, "the consumer cannot go before the producer"
    return f"priorities {greatest} (first) to {least}", {"priorities": [greatest, least]}


for check in (versions, driver, package, doctor, copy, host_copy, products, launches, streams):
    job.check(check.__name__.replace("_", " "), check)
