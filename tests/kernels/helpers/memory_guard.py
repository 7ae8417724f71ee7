"""Bounds checks and counts for every global memory access of interpreted Triton kernels.

    with guard() as launches:
        kernels.latents(5, 7, seed=1, impl="triton")
    assert (launches[0]["out_ptr"].writes == 1).all()

Each load, store and atomic of a launch must address an element of one of that launch's tensor arguments (an element of the
view itself: gaps of a strided view do not count), aligned to its size; masked-off lanes are not checked.
An `OutOfBoundsError` (inside Triton's InterpreterError) names the program, the nearest argument and the element.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime.interpreter import (
    GridExecutor,
    InterpreterBuilder,
    TensorHandle,
    interpreter_builder,
)


class OutOfBoundsError(AssertionError):
    """A kernel touched memory outside its tensor arguments."""


@dataclass
class Accesses:
    """How often each element of one tensor argument was read and written; arrays of the tensor's shape."""

    reads: np.ndarray
    writes: np.ndarray


class _Region:
    """The memory of one tensor argument, element by element of its extent (gaps of a strided view included)."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.name = name
        self.begin = tensor.data_ptr()
        self.itemsize = tensor.element_size()
        extent = (
            sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            if tensor.numel()
            else 0
        )
        self.reads = np.zeros(extent, np.int32)
        self.writes = np.zeros(extent, np.int32)
        self.inside = np.zeros(extent, bool)
        byte_strides = tuple(s * 4 for s in tensor.stride())
        view = np.lib.stride_tricks.as_strided
        self.accesses = Accesses(
            view(self.reads, tuple(tensor.shape), byte_strides, writeable=False),
            view(self.writes, tuple(tensor.shape), byte_strides, writeable=False),
        )
        view(self.inside, tuple(tensor.shape), tensor.stride())[...] = True

    def hits(self, addresses: np.ndarray, size: int) -> np.ndarray:
        element, remainder = np.divmod(addresses - self.begin, self.itemsize)
        found = (
            (element >= 0)
            & (element < len(self.inside))
            & (remainder == 0)
            & (size == self.itemsize)
        )
        found[found] = self.inside[element[found]]
        return found

    def count(self, addresses: np.ndarray, kind: str) -> None:
        np.add.at(
            self.reads if kind == "read" else self.writes,
            (addresses - self.begin) // self.itemsize,
            1,
        )

    def distance(self, address: int) -> int:
        end = self.begin + len(self.inside) * self.itemsize
        return max(self.begin - address, address - end + self.itemsize, 0)


Launch = dict[str, Accesses]


class _Guard:
    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.regions: list[_Region] = []

    def start(self, executor: GridExecutor, args: list[Any], kwargs: dict[str, Any]) -> None:
        named = inspect.getcallargs(executor.fn, *args, **kwargs)
        self.regions = [_Region(k, v) for k, v in named.items() if isinstance(v, torch.Tensor)]
        self.launches.append({r.name: r.accesses for r in self.regions})

    def check(self, pointers: TensorHandle, mask: np.ndarray | None, kind: str) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        active = (
            np.ones(pointers.data.shape, bool)
            if mask is None
            else np.broadcast_to(mask, pointers.data.shape)
        )
        addresses = pointers.data[active].astype(np.int64).ravel()
        known = np.zeros(addresses.shape, bool)
        for region in self.regions:
            hits = region.hits(addresses, size)
            region.count(addresses[hits], kind)
            known |= hits
        if not known.all():
            bad = int(addresses[~known][0])
            near = min(self.regions, key=lambda r: r.distance(bad))
            raise OutOfBoundsError(
                f"{kind} out of bounds in program {interpreter_builder.grid_idx}: {int((~known).sum())} lanes, the first at "
                f"{near.name}[{(bad - near.begin) / near.itemsize:g}], which has elements 0 to {len(near.inside) - 1}"
            )


@contextmanager
def guard() -> Iterator[list[Launch]]:
    """Check every access in the block; yields one {argument name: Accesses} for each launch, in order."""
    state = _Guard()

    def starting(prepare: Callable[..., Any]) -> Callable[..., Any]:
        def patched(self: GridExecutor, args_dev: Any, kwargs: dict[str, Any]) -> Any:
            args, named = prepare(self, args_dev, kwargs)
            state.start(self, args, named)
            return args, named

        return patched

    def checked(
        operation: Callable[..., Any], pointer: int, mask: int | None, kinds: tuple[str, ...]
    ) -> Callable[..., Any]:
        def patched(self: InterpreterBuilder, *args: Any) -> Any:
            for kind in kinds:
                state.check(args[pointer], None if mask is None else args[mask].data, kind)
            return operation(self, *args)

        return patched

    operations: dict[str, tuple[int, int | None, tuple[str, ...]]] = {
        "create_masked_load": (0, 1, ("read",)),
        "create_masked_store": (0, 2, ("write",)),
        "create_atomic_rmw": (1, 3, ("read", "write")),
        "create_atomic_cas": (0, None, ("read", "write")),
    }
    with ExitStack() as stack:
        prepare = GridExecutor._init_args_hst
        stack.enter_context(mock.patch.object(GridExecutor, "_init_args_hst", starting(prepare)))
        for name, (pointer, mask, kinds) in operations.items():
            original = getattr(InterpreterBuilder, name)
            stack.enter_context(
                mock.patch.object(InterpreterBuilder, name, checked(original, pointer, mask, kinds))
            )
        yield state.launches
