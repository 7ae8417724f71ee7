"""Part 6: the ops against PyTorch, and each kernel's bandwidth relative to that of a copy."""

from __future__ import annotations

import argparse
import csv
import io
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from device import DEVICE, ON_GPU, ROOT, beside, seconds
from records import Found, Job, NotHere, read

beside("scripts")

import write_gpu_model  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from helpers import fake_driver  # noqa: E402

METRICS = "gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed"
WATCHED = ("views 64x3x128x128, two", "cond_norm_act 32x128x32x32, upsample, float32")


def one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--one", default="", help="only launch this case, for a profiler")


job = Job(__doc__ or "", one)


@cache
def cases() -> dict[str, write_gpu_model.Case]:
    with torch.device(DEVICE):
        found = {case.name: case for case in write_gpu_model.cases()}
    return dict(list(found.items())[:2]) if job.dry else found


@contextmanager
def recorded() -> Iterator[list[tuple[str, int]]]:
    """Names and bytes of the kernels that the block launches; without a GPU they are only compiled."""
    if not ON_GPU:
        with fake_driver.compiling("sm_90") as launches:
            found: list[tuple[str, int]] = []
            yield found
            found += [(launch.name, write_gpu_model.bytes_of(launch)) for launch in launches]
        return
    run, found = JITFunction.run, []

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, **kwargs)
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        moved = write_gpu_model.bytes_of(SimpleNamespace(arguments=values))  # type: ignore[arg-type]
        found.append((kernel.name, moved))
        return kernel

    JITFunction.run = recording
    try:
        yield found
    finally:
        JITFunction.run = run


@cache
def copy_rate() -> float:
    """A copy's bytes per second: from part 1 if available, else measured now."""
    for record in read(job.out, 1):
        if rate := record.facts.get("copy_gb_per_s"):
            return 1e9 * float(rate)
    x = torch.empty(2**20 if job.dry else 2**30, dtype=torch.uint8, device=DEVICE)
    y = torch.empty_like(x)
    return 2 * len(x) / seconds(lambda: y.copy_(x))


def kernel_seconds(launch: Callable[[], object], name: str) -> float:
    """Device time of the kernel alone, without the launch: the median of twenty runs, from the profiler."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        launch()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watch:
        for _ in range(20):
            launch()
        torch.cuda.synchronize()
    times = [e.time_range.elapsed_us() for e in watch.events() or () if e.name == name]
    assert times, f"the profiler saw no kernel named {name}"
    return statistics.median(times) / 1e6


def reached(case: write_gpu_model.Case) -> Callable[[], Found]:
    def measured() -> Found:
        with torch.device(DEVICE):
            with recorded() as launches:
                case.launch()
            ((name, moved),) = launches
            if not ON_GPU:
                return f"{moved / 1e6:.2f} MB; compiled only", {"bytes": moved}
            each = kernel_seconds(case.launch, name)
        rate = moved / each
        facts = {"bytes": moved, "seconds": each, "share": rate / copy_rate()}
        return f"{1e6 * each:.1f} µs, {rate / 1e9:,.0f} GB/s, {facts['share']:.0%} of a copy's", facts  # fmt: skip

    return measured


def ops() -> Found:
    """The cases of `make bench-gpu`, without torch.compile's contenders, two rounds."""
    raw = job.out / "part-6-ops.json"
    # Without a GPU the benchmarks' own CPU clock and one op.
    which = ["--device", "cuda", "-k", "not compile"] if ON_GPU else ["-k", "pseudo_label and fused and 1-"]  # fmt: skip
    command = [sys.executable, "-P", "-m", "pytest", "benchmarks/kernels/test_speed.py", "-q", "--benchmark-enable",
               "--benchmark-only", "--rounds", "2", *which, f"--benchmark-json={raw}"]  # fmt: skip
    limit = max(20.0, job.seconds_left - 60)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, env=os.environ)  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-2000:])
    last = (done.stdout.strip().splitlines() or [""])[-1]
    assert done.returncode == 0, last
    return f"{last.strip('= ')}; tables: python benchmarks/write_results.py {raw.name}"


def counters(name: str) -> Callable[[], Found]:
    def read_counters() -> Found:
        if not ON_GPU or not shutil.which("ncu"):
            raise NotHere("there is no ncu, or no GPU")
        command = ["ncu", "--csv", "--clock-control", "none", "--profile-from-start", "off", "--metrics", METRICS,
                   sys.executable, __file__, "--out", str(job.out), "--part", "6", "--one", name]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        print(done.stdout[-4000:], done.stderr[-2000:])
        table = "\n".join(line for line in done.stdout.splitlines() if line.startswith('"'))
        rows = list(csv.DictReader(io.StringIO(table)))
        assert rows, (done.stdout + done.stderr).strip().splitlines()[-1:]
        facts = {r["Metric Name"]: f"{r['Metric Value']} {r['Metric Unit']}" for r in rows}
        return ", ".join(f"{k.partition('.')[0]} {v}" for k, v in facts.items()), facts

    return read_counters


def main() -> None:
    if job.options.one:
        case = cases()[job.options.one]
        with torch.device(DEVICE):
            case.launch()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            case.launch()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        return
    for name, case in cases().items():
        job.check(name, reached(case))
    for name in WATCHED:
        job.check(f"counters of {name}", counters(name), needs=30)
    job.check("ops", ops, needs=90 if ON_GPU else 20)


main()
