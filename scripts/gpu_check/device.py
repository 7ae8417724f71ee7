"""The device under test and its clock; in a dry run the CPU replaces both."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def beside(*folders: str) -> None:
    """Make the modules in these folders of the checkout importable by name."""
    sys.path[:0] = [str(ROOT / folder) for folder in folders]


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], *, calls: int = 10, warm_ups: int = 3) -> float:
    """Device time of a call: the median of `calls` calls, timed by events on the stream."""
    for _ in range(warm_ups):
        call()
    synchronize()
    times = []
    for _ in range(calls):
        if not ON_GPU:
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return statistics.median(times)


def peak_gib(call: Callable[[], Any]) -> float:
    """Peak memory of torch's allocator during a call, in GiB; 0 on a CPU."""
    if not ON_GPU:
        call()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


# By name: whether float32 products and convolutions use TF32, and whether autocast is on.
PRECISIONS = {"float32": (False, False), "tf32": (True, False), "bfloat16": (True, True)}


@contextmanager
def precision(name: str) -> Iterator[None]:
    tf32, autocast = PRECISIONS[name]
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        # Weights cast by autocast must not outlive a captured graph.
        with torch.autocast(DEVICE.type, torch.bfloat16, autocast, cache_enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])
