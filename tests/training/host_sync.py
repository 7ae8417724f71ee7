"""A loop in which torch raises whenever the host waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watched(set_mode: Callable[[str], None]) -> Iterator[Callable[[str, int, int], None]]:
    """A `Context.on_step` that turns the sync check on after a stage's first two steps, and off before the last one.

    The first steps compile kernels, fill the ring and capture; the last one logs, which reads values. set_mode:
    `torch.cuda.set_sync_debug_mode`. The loop must log and save only at its end, and needs five steps.
    """

    def on_step(stage: str, step: int, steps: int) -> None:
        assert steps >= 5
        if step == 2:
            set_mode("error")
        if step == steps - 1:
            set_mode("default")

    try:
        yield on_step
    finally:
        set_mode("default")
