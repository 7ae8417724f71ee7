"""A Triton driver for an absent device: real call sites specialize and compile, but nothing is launched.

    with compiling("sm_90") as launches:
        launch(tensor, ...)                 # any function that calls kernel[grid](...), with CPU tensors
    launches[0].kernel                      # the CompiledKernel of the first call, for inspection.inspect

Must not run in an interpreting process. Triton's cache on the disk is used: its key is the source with its version, target and
options, so a kernel is compiled once, and never taken for another target.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

# The targets that the project builds for.
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# The maximum shared memory per block on each.
MAX_SHARED_BYTES = {
    "sm_80": 166912,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
}


@dataclass(frozen=True)
class Launch:
    """One kernel[grid](...) call: the kernel compiled for it, its grid and its arguments by name (constexprs included)."""

    kernel: CompiledKernel
    grid: tuple[int, int, int]
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.name


class _Utilities:
    def __init__(self, max_shared: int) -> None:
        self._max_shared = max_shared

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._max_shared, "multiprocessor_count": 132}

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, None, int, int, int]:
        # module, function, registers, spills, maximum threads per block
        return None, None, 0, 0, 1024


class _FakeDriver:
    def __init__(self, target: str) -> None:
        self._target = TARGETS[target]
        self.utils = _Utilities(MAX_SHARED_BYTES[target])

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        # Called once per compiled kernel, before its first launch; `run` records every launch instead.
        return lambda *_: None


@contextmanager
def compiling(target: str) -> Iterator[list[Launch]]:
    """Compile what the block launches for one of TARGETS; yields the launches, in order."""
    launches: list[Launch] = []
    run = JITFunction.run

    def recording(
        self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any
    ) -> CompiledKernel:
        # A JIT function caches compiled kernels by device number, so this device gets a new number each time.
        self.device_caches.clear()
        kernel = run(self, *args, grid=grid, warmup=warmup, **kwargs)
        arguments = dict(zip(self.arg_names, args, strict=False)) | kwargs
        size = tuple(grid(arguments) if callable(grid) else grid)
        launches.append(Launch(kernel, (*size, 1, 1)[:3], arguments))
        return kernel

    previous = driver._active
    driver.set_active(_FakeDriver(target))
    JITFunction.run = recording
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = previous
