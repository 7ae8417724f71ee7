"""What the rewriter does for GPUs, on fake CUDA tensors: which operators run, in which dtypes; their values on the CPU."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from ptgm_fast.generators.adapters.biggan import attend
from ptgm_fast.generators.rewriter import attention, optimize
from ptgm_fast.generators.rewriter.ir import ATTEND
from ptgm_fast.generators.rewriter.rewrite import OptimizedModule, rewrite

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
sys.path.insert(0, str(Path(__file__).parents[2] / "runs"))
from fake_cuda import _to as to_fake_gpu


def rewritten(module: nn.Module, *sizes: tuple[int, ...]) -> OptimizedModule:
    """The module as it is rewritten on a GPU; call it within a fake mode."""
    with torch.no_grad():
        example = tuple(torch.empty(s, device="cuda") for s in sizes)
        return rewrite(to_fake_gpu(module), example, ())[0]


class Seen(fx.Interpreter):
    """Runs a graph and keeps what attention was called with."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is ATTEND:
            self.attended = args[:3]
        return super().call_function(target, args, kwargs)


class SelfAttention(nn.Module):
    """That of BigGAN and BigGAN-deep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.theta, self.phi = (nn.Conv2d(64, 8, 1, bias=False) for _ in range(2))
        self.g, self.o = nn.Conv2d(64, 32, 1, bias=False), nn.Conv2d(32, 64, 1, bias=False)
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return attend(x, self.theta, self.phi, self.g, self.o, self.gamma)


def frozen(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def calls(body: OptimizedModule) -> Counter[str]:
    nodes = body.graph.graph.nodes
    return Counter(str(n.target).split(".")[1] for n in nodes if n.op == "call_function")


def test_attention_is_one_call_on_a_gpu() -> None:
    module = frozen(SelfAttention())
    on_cpu, _ = rewrite(module, (torch.zeros(2, 64, 32, 32),), ())
    # 1,024 queries, 128 at a time.
    assert calls(on_cpu)["bmm"] == 16
    assert calls(on_cpu)["softmax"] == 8
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        body = rewritten(module, (2, 64, 32, 32))
        seen = Seen(body.graph)
        images = torch.empty(5, 64, 32, 32, device="cuda", memory_format=torch.channels_last)
        assert seen.run(images).shape == (5, 64, 32, 32)
    assert calls(body)["scaled_dot_product_attention"] == 1
    assert not {"bmm", "matmul", "softmax", "cat"} & set(calls(body))
    # What torch's kernels ask for: one head, and rows that lie together.
    assert [tuple(x.shape) for x in seen.attended] == [
        (5, 1, 1024, 8),
        (5, 1, 256, 8),
        (5, 1, 256, 32),
    ]
    assert {x.stride(-1) for x in seen.attended} == {1}


@pytest.mark.parametrize("side", [32, 8])
def test_it_is_the_same_attention(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """The graph of a GPU, computed here; small images too, which a CPU leaves alone."""
    monkeypatch.setattr(attention, "on_gpu", lambda node: True)
    module = frozen(SelfAttention())
    result = optimize(module, example=(torch.zeros(2, 64, side, side),))
    matched = {row.name: row for row in result.passes}["attention"]
    assert matched.matched == 1
    assert matched.multiply_adds[0] == matched.multiply_adds[1]
    assert matched.bytes[1] < matched.bytes[0]
    images = torch.randn(3, 64, side, side)
    torch.testing.assert_close(result.module(images), module(images), atol=1e-5, rtol=1e-5)
