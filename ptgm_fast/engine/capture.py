"""A synthesis step captured once as a CUDA graph and replayed for other samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Made = TypeVar("Made")
# torch's notes on CUDA graphs require warm-up calls, so that lazy initialization happens before the capture.
WARM_UPS = 3


class CapturedStep(Generic[Made]):
    """step(*inputs), with the kernel launches of one call captured and replayed.

    Integer inputs (the number of a step's first sample) are kept in device memory, int64 [1], where the addressed ops
    read them; tensor inputs are kept in static buffers. No input is baked into the graph, so a replay makes other
    samples. Shapes must not change between calls, and the step must not read a value on the host. The caller owns what
    a call returns.

    cuda: `torch.cuda`, or any object with its CUDAGraph and graph. Tested with a stand-in that records operators and
    replays them; it has not run on a GPU.
    """

    def __init__(
        self, step: Callable[..., Made], device: torch.device, cuda: Any = torch.cuda
    ) -> None:
        self._step, self._device, self._cuda = step, device, cuda
        self._graph: Any = None
        self._inputs: list[Tensor] = []
        self._made: Made | None = None

    def __call__(self, *inputs: int | Tensor) -> Made:
        """Raises ValueError if the inputs' shapes or types differ from the captured ones."""
        if self._graph is None:
            self._capture(inputs)
        mine, given = [_form(i) for i in self._inputs], [_form(i) for i in inputs]
        if mine != given:
            raise ValueError(f"the step was captured for {mine}, got {given}")
        for buffer, value in zip(self._inputs, inputs, strict=True):
            if isinstance(value, Tensor):
                buffer.copy_(value)
            else:
                buffer.fill_(value)
        self._graph.replay()
        # The next replay overwrites these outputs.
        made: Made = tree_map_only(Tensor, torch.clone, self._made)
        return made

    def _capture(self, inputs: tuple[int | Tensor, ...]) -> None:
        self._inputs = [
            i.to(self._device, copy=True)
            if isinstance(i, Tensor)
            else torch.full((1,), i, dtype=torch.int64, device=self._device)
            for i in inputs
        ]
        for _ in range(WARM_UPS):
            self._step(*self._inputs)
        graph = self._cuda.CUDAGraph()
        stream = self._cuda.current_stream(self._device)
        if stream == self._cuda.default_stream(self._device):
            stream = None  # it cannot be captured: torch uses a stream of its own
        # Another thread of the process (a data loader pinning memory) may call CUDA during the capture.
        with (
            self._cuda.device(self._device),
            self._cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._made = self._step(*self._inputs)
        self._graph = graph


def _form(given: int | Tensor) -> str:
    if isinstance(given, Tensor):
        return f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
    return "int64 [1]"
