"""`class_mix` as an op: gradients, torch.library, torch.compile, errors, forked workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ptgm_fast.kernels import class_mix, dispatch

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
OP = torch.ops.ptgm_fast.class_mix.default


@pytest.fixture(params=["reference", "cpu"])
def impl(request: pytest.FixtureRequest) -> str:
    if reason := dispatch.why_not("class_mix", request.param, "cpu"):
        pytest.skip(reason)
    return request.param


def pair(
    num: int, num_classes: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(num + 10 * num_classes + 100 * dim)
    logits, embedding = 3 * torch.randn(num, num_classes), torch.randn(num_classes, dim)
    return logits.to(dtype), embedding.to(dtype)


def test_gradients(impl: str) -> None:
    for top_k in (None, 3):
        leaves = [t.requires_grad_() for t in pair(6, 10, 4)]
        weights = torch.randn(6, 4)
        grads = []
        for name in (impl, "reference"):
            mixed = class_mix(*leaves, temperature=0.7, top_k=top_k, impl=name)
            grads.append(torch.autograd.grad((mixed * weights).sum(), leaves))
        for found, expected in zip(*grads, strict=True):
            torch.testing.assert_close(found, expected)


def test_gradcheck() -> None:
    leaves = [t.double().requires_grad_() for t in pair(4, 6, 3)]
    for top_k in (None, 2):
        assert torch.autograd.gradcheck(
            lambda a, b, k=top_k: class_mix(a, b, temperature=0.7, top_k=k), leaves
        )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("top_k", [None, 2])
def test_opcheck(impl: str, dtype: torch.dtype, top_k: int | None) -> None:
    logits, embedding = (t.requires_grad_() for t in pair(4, 6, 3, dtype))
    torch.library.opcheck(OP, (logits, embedding, 0.7, top_k, impl))


def test_compiles_into_one_graph(impl: str) -> None:
    def mix(logits: Tensor, embedding: Tensor) -> Tensor:
        return 2 * class_mix(logits, embedding, temperature=0.5, top_k=3, impl=impl)

    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    for num in (4, 5, 6):
        logits, embedding = pair(num, 10, 4)
        embedding.requires_grad_()
        found, expected = compiled(logits, embedding), mix(logits, embedding)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(y.square().sum(), embedding)[0] for y in (found, expected)]
        torch.testing.assert_close(*grads)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_mix(ones(3), ones(3, 2)), r"logits must be a matrix of floats.*\[3\]"),
        (lambda: class_mix(ones(1, 3).long(), ones(3, 2)), "logits must be a matrix of floats"),
        (lambda: class_mix(ones(1, 3), ones(3)), "embedding must be a matrix of floats"),
        (lambda: class_mix(ones(1, 3), ones(4, 2)), r"one C >= 1, got \[1, 3\] and \[4, 2\]"),
        (lambda: class_mix(ones(1, 0), ones(0, 2)), "one C >= 1"),
        (lambda: class_mix(ones(1, 3), ones(3, 2).to("meta")), "must be on one device"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), temperature=0.0), "must be a positive number"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), temperature=float("nan")), "must be a positive"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), top_k=0), "top_k must be at least 1"),
        (lambda: class_mix(ones(1, 3), ones(3, 2), impl="fast"), "unknown implementation 'fast'"),
    ],
)
def test_what_is_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_named_implementation_never_falls_back(impl: str) -> None:
    logits, embedding = pair(2, 3, 4)
    with pytest.raises(dispatch.ImplementationError, match="CUDA tensors"):
        class_mix(logits, embedding, impl="triton")
    if impl == "cpu":
        with pytest.raises(dispatch.ImplementationError, match="float64"):
            class_mix(logits.double(), embedding, impl="cpu")
    assert class_mix(logits.double(), embedding).dtype == torch.float32


def test_a_forked_worker_does_not_hang() -> None:
    # The child compares bytes: torch's own comparison may wait for threads that the fork left behind.
    script = """
import os, sys, torch
from ptgm_fast.kernels import class_mix
torch.set_num_threads(2)
logits, embedding = torch.randn(64, 500), torch.randn(500, 64)
expected = class_mix(logits, embedding).numpy().tobytes()
child = os.fork()
if child == 0:
    os._exit(0 if class_mix(logits, embedding).numpy().tobytes() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
