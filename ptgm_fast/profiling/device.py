"""Device-side timing with events on the device's streams, read later."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


class CudaTimer:
    """A pool of reusable CUDA events (HIP events on ROCm). A mark is a point on the current stream's timeline.

    No GPU has run this; the tests drive it with a mock of `torch.cuda`.
    """

    def __init__(self, device: torch.device, cuda: Any = None) -> None:
        self._cuda = cuda or torch.cuda
        self._device = device
        self._free: list[Any] = []
        self._new: Callable[[], Any] = lambda: self._cuda.Event(enable_timing=True)

    def mark(self) -> Any | None:
        """Record a mark without waiting; None during graph capture, when nothing can be timed."""
        if self._cuda.is_current_stream_capturing():
            return None
        try:
            # pop() is atomic: several threads take marks from the same pool.
            event = self._free.pop()
        except IndexError:
            event = self._new()
        event.record(self._cuda.current_stream(self._device))
        return event

    def ready(self, mark: Any) -> bool:
        return bool(mark.query())

    def seconds(self, first: Any, second: Any) -> float:
        """Seconds between two marks, which must both be ready."""
        return float(first.elapsed_time(second)) / 1e3

    def recycle(self, mark: Any) -> None:
        self._free.append(mark)

    def stream(self) -> Hashable:
        """The stream that work issued now would run on."""
        return self._cuda.current_stream(self._device).cuda_stream

    def synchronize(self) -> None:
        self._cuda.synchronize(self._device)


def device_timer(device: torch.device | str) -> CudaTimer | None:
    """The timer of a device; None for the CPU, where the host clock is the only one."""
    device = torch.device(device)
    return CudaTimer(device) if device.type == "cuda" else None
