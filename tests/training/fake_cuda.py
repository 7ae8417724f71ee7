"""Fake CUDA tensors: shapes, dtypes and devices of a step on a GPU, without having one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import SourceModels, randomness

GPU = torch.device("cuda", 0)
# torch has no fake kernels for these, which change their arguments and return nothing.
_shapes = torch.library.Library("aten", "IMPL")
for _name in ("_fused_sgd_", "_fused_adamw_"):
    _shapes.impl(_name, lambda *_, **__: None, "Meta")


def _to(
    module: nn.Module, device: Any = None, *, memory_format: torch.memory_format | None = None
) -> nn.Module:
    """Replaces nn.Module.to, which swaps a parameter's memory; fake tensors do not support that."""

    def moved(value: Tensor) -> Tensor:
        if not isinstance(value, FakeTensor):
            value = torch.empty(value.shape, dtype=value.dtype, device=GPU)
        if memory_format is None or value.dim() != 4:
            return value.detach()
        return value.detach().to(memory_format=memory_format)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(moved(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer)
    return module


def _backward(loss: Tensor) -> None:
    """Runs loss.backward() node by node: autograd's engine asks the CUDA driver for streams, and there is no driver."""
    gradients: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    with torch.no_grad():
        for node in _consumers_first(loss.grad_fn):
            # Like the engine: sum over broadcast dimensions, and cast, to the forward's shape and dtype.
            given = [
                None if g is None else g.sum_to_size(m.shape).to(m.dtype)
                for g, m in zip(gradients.pop(node), node._input_metadata, strict=False)
            ]
            if hasattr(node, "variable"):
                leaf, (gradient,) = node.variable, given
                if gradient is not None:
                    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                continue
            given += [None] * (len(node._input_metadata) - len(given))
            made = node.apply(*given) if hasattr(node, "apply") else node(*given)
            made = made if isinstance(made, tuple) else (made,)
            # A custom op's non-tensor arguments come after its tensors and have no edge.
            while len(made) > len(node.next_functions) and made[-1] is None:
                made = made[:-1]
            for (target, place), gradient in zip(node.next_functions, made, strict=True):
                if target is not None:
                    slots = gradients.setdefault(target, [])
                    slots += [None] * (place + 1 - len(slots))
                    before = slots[place]
                    slots[place] = gradient if before is None else before + gradient


def _consumers_first(root: Any) -> list[Any]:
    order: list[Any] = []
    seen = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(target, False) for target, _ in node.next_functions if target is not None]
    return order[::-1]


class OffTheDevice(TorchDispatchMode):
    """Records the operators that made a tensor outside the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ran = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ran += 1
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.device != GPU:
                self.found.append(str(func))
        return out


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Within the block every tensor is fake; a real one, or reading a value on the host, raises."""
    monkeypatch.setattr(nn.Module, "to", _to)
    monkeypatch.setattr(Tensor, "backward", _backward)
    # A copy of a tensor (as for the average) has the same mode.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    # autocast and the rule for compiling also query the driver: values of an H100.
    memory = SimpleNamespace(memory_clock_rate=2619000, memory_bus_width=5120)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: memory)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(
        torch.cuda.amp.common, "amp_definitely_not_available", lambda: False, raising=True
    )
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:

        def uploaded(values: Any, device: torch.device) -> Tensor:
            with _disable_current_modes():
                host = mode.from_tensor(torch.from_numpy(values))
            return host.to(device)

        # The only way to the device within a step; a copy to a real one starts in pinned memory.
        monkeypatch.setattr(randomness, "uploaded", uploaded)
        yield mode


def on_gpu(task: Task, mode: FakeTensorMode) -> Task:
    """The task as built on a GPU."""
    source, train = task.source, task.data.train
    images, labels = mode.from_tensor(train.images), mode.from_tensor(train.labels)
    fake = SourceModels(
        _to(source.generator),  # type: ignore[arg-type]
        _to(source.classifier),
        device=GPU,
        precision=source.precision,
    )
    data = replace(task.data, train=replace(train, images=images, labels=labels))
    return replace(task, device=GPU, source=fake, data=data)
