"""Estimate the memory traffic that compiling a network saves on a GPU, without running the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptgm_fast.kernels import cond_norm_act as _registers_the_op  # noqa: F401

# Products and fused ops: compiling does not change what they read and write.
_OPAQUE = frozenset({"convolution", "mm", "addmm", "bmm", "baddbmm", "attention"})
FUSED = torch.ops.ptgm_fast.cond_norm_act.default


@dataclass(frozen=True)
class Traffic:
    """Of one forward: the number of operator calls, not counting views, and the bytes saved by fusing those between products."""

    calls: int
    saved_bytes: int


def traffic(
    network: nn.Module, forward: Callable[[Tensor], Any], shape: tuple[int, ...]
) -> Traffic:
    """The traffic of forward(images) in float32 for images of `shape`; network is the module whose weights it uses.

    The operators between two products are assumed to fuse into one pass: a tensor that one of them writes and another reads
    is no longer read from memory, and it is written only if a product or the caller reads it. Counted on fake tensors:
    nothing is computed, and the network is left unchanged. Raises what the network raises if it reads a tensor's values.
    """
    device = next(t.device for t in network.parameters())
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            images = torch.empty(shape, device=device)
            with _Count() as count:
                returned = forward(images)
    finally:
        network.train(training)
    kept = count.read_by_products | {_memory(t) for t in tree_leaves(returned) if isinstance(t, Tensor)}  # fmt: skip
    unwritten = sum(size for memory, size in count.between.items() if memory not in kept)
    return Traffic(count.calls, count.reread + unwritten)


def bytes_a_second(device: torch.device) -> float:
    """Peak memory bandwidth of a GPU: 2 * memory clock * bus width; 1e12 where torch does not report them, and on CPUs."""
    if device.type != "cuda":
        return 1e12
    properties: Any = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "memory_clock_rate", 0) * 1e3
    return 2 * clock * getattr(properties, "memory_bus_width", 0) / 8 or 1e12


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = self.reread = 0
        # Storages that operators between products wrote, and their sizes in bytes.
        self.between: dict[int, int] = {}
        self.read_by_products: set[int] = set()
        self._alive: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = {_memory(t): _bytes(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        # An address identifies a storage only while the storage is alive.
        self._alive += made
        words = func._schema.name.split("::")[1].split("_")
        viewed = all(_memory(t) in read for t in made) and not func._schema.is_mutable
        if viewed or "empty" in words:
            return out
        self.calls += 1
        if not _OPAQUE.isdisjoint(words) or func is FUSED:
            self.read_by_products |= read.keys()
            return out
        self.reread += sum(size for memory, size in read.items() if memory in self.between)
        self.between |= {_memory(t): _bytes(t) for t in made}
        return out


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
