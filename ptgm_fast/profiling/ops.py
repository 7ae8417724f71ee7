"""torch.profiler over a few steady steps of each stage: which operators take the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ptgm_fast.models.weights import write_atomically

ROWS = 40


class OpsProfiler:
    """Profiles `steps` steps of each stage: from the first steady step on, or the last steps of a short stage.

    Writes ``ops-STAGE.txt`` (operators sorted by self time) and ``ops-STAGE-trace.json`` (for Perfetto). Covers the
    trainer's thread and its backward threads. Profiled steps are slower and do not count as steady.
    """

    def __init__(self, folder: Path, steps: int, device: torch.device | str) -> None:
        self._folder = folder
        self._steps = steps
        self._on_gpu = torch.device(device).type == "cuda"
        self._done: set[str] = set()
        self._left = 0
        self._stage = ""
        self._profiler: Any = None

    @property
    def active(self) -> bool:
        return self._profiler is not None

    def after_step(self, stage: str, *, steady: bool, left: int | None) -> None:
        """To be called after each step. left: number of steps left in the stage, None if unknown."""
        if self._profiler:
            self._left -= 1
            if self._left <= 0 or left == 0:
                self.stop()
            return
        last_ones = left is not None and 0 < left <= self._steps
        if stage not in self._done and (last_ones or (steady and left != 0)):
            self._start(stage)

    def _start(self, stage: str) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._stage, self._left = stage, self._steps
        self._done.add(stage)
        self._profiler = profile(activities=activities)
        self._profiler.start()

    def stop(self) -> None:
        """Stop profiling and write the files; a no-op if no profiler is running."""
        if not self._profiler:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        order = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
        trace = self._folder / f"ops-{self._stage}-trace.json"
        temporary = trace.with_name(f".{trace.name}.tmp")
        try:
            profiler.export_chrome_trace(str(temporary))
            temporary.replace(trace)
        finally:
            temporary.unlink(missing_ok=True)
        text = self._folder / f"ops-{self._stage}.txt"
        write_atomically(text, (table + "\n").encode())
