"""A stand-in for CUDA graphs: records the operators of a capture, and replays them on the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    def __init__(self, operators: list[Any]) -> None:
        super().__init__()
        self.operators = operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, out))
        return out


class StandInForCudaGraphs:
    """`CUDAGraph` and `graph`: a replay runs the same operators on the same memory, without the Python code between them."""

    def __init__(self) -> None:
        self.replays = 0
        self.modes: list[str] = []
        self.streams: list[Any] = []
        self.devices: list[Any] = []
        self.stream = "producer"
        stand_in = self

        class CUDAGraph:
            def __init__(self) -> None:
                self.operators: list[Any] = []

            def replay(self) -> None:
                stand_in.replays += 1
                for func, args, kwargs, out in self.operators:
                    again = func(*args, **kwargs)
                    for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)

        self.CUDAGraph = CUDAGraph

    def current_stream(self, device: Any) -> str:
        return self.stream

    def default_stream(self, device: Any) -> str:
        return "default"

    def device(self, device: Any) -> Any:
        self.devices.append(device)
        return nullcontext()

    @contextmanager
    def graph(
        self, graph: Any, stream: Any = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        self.modes.append(capture_error_mode)
        self.streams.append(stream)
        with Recorder(graph.operators):
            yield
