"""The rewriter's output for GPUs, on fake CUDA tensors: which operators run, in which dtypes; their values on the CPU."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ptgm_fast import generators
from ptgm_fast.generators.adapters.biggan import attend
from ptgm_fast.generators.adapters.biggan_deep import BigGANDeepConfig, BigGANDeepNetwork
from ptgm_fast.generators.rewriter import affine, attention, optimize
from ptgm_fast.generators.rewriter.ir import ATTEND
from ptgm_fast.generators.rewriter.rewrite import OptimizedModule, rewrite
from ptgm_fast.generators.rewriter.rounded import rounded
from ptgm_fast.sampling import FrozenGenerator

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
sys.path.insert(0, str(Path(__file__).parents[2] / "runs"))
from fake_cuda import _to as to_fake_gpu


def rewritten(module: nn.Module, *sizes: tuple[int, ...]) -> OptimizedModule:
    """The module as rewritten on a GPU; call it within a fake mode."""
    with torch.no_grad():
        example = tuple(torch.empty(s, device="cuda") for s in sizes)
        return rewrite(to_fake_gpu(module), example, ())[0]


class Seen(fx.Interpreter):
    """Runs a graph and records the arguments of attention."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is ATTEND:
            self.attended = args[:3]
        return super().call_function(target, args, kwargs)


class SelfAttention(nn.Module):
    """The attention of BigGAN and BigGAN-deep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.theta, self.phi = (nn.Conv2d(64, 8, 1, bias=False) for _ in range(2))
        self.g, self.o = nn.Conv2d(64, 32, 1, bias=False), nn.Conv2d(32, 64, 1, bias=False)
        self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return attend(x, self.theta, self.phi, self.g, self.o, self.gamma)


def as_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in (attention, affine):
        monkeypatch.setattr(part, "on_gpu", lambda node: True)


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
    # What torch's kernels require: one head, and contiguous rows.
    assert [tuple(x.shape) for x in seen.attended] == [
        (5, 1, 1024, 8),
        (5, 1, 256, 8),
        (5, 1, 256, 32),
    ]
    assert {x.stride(-1) for x in seen.attended} == {1}


@pytest.mark.parametrize("side", [32, 8])
def test_it_is_the_same_attention(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """A GPU's graph, computed here; also for small images, which are not rewritten on a CPU."""
    as_for_a_gpu(monkeypatch)
    module = frozen(SelfAttention())
    result = optimize(module, example=(torch.zeros(2, 64, side, side),))
    matched = {row.name: row for row in result.passes}["attention"]
    assert matched.matched == 1
    assert matched.multiply_adds[0] == matched.multiply_adds[1]
    assert matched.bytes[1] < matched.bytes[0]
    images = torch.randn(3, 64, side, side)
    torch.testing.assert_close(result.module(images), module(images), atol=1e-5, rtol=1e-5)


class Modulated(nn.Module):
    """Scales and shifts [N, 6] of a condition [N, 5], computed in the named way, applied to a map [N, 6, 4, 4]."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.one, self.two = nn.Linear(5, 6), nn.Linear(5, 6, bias=False)
        self.both = nn.Linear(5, 12)
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("std", torch.rand(6) + 0.5)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        wide = (slice(None), slice(None), None, None)
        if self.form == "norm":
            normal = (x - self.mean[None, :, None, None]) / self.std[None, :, None, None]
            return normal * (1 + self.one(c))[wide] + self.two(c)[wide]
        if self.form == "chunk":
            scale, shift = self.both(c).chunk(2, 1)
            return x * (2 - scale)[wide] - (shift / self.std)[wide]
        if self.form == "slice":
            return x * (-self.both(c)[:, 3:9] * self.mean)[wide] + self.one(c)[wide]
        if self.form == "two inputs":
            return x * (self.one(c) + self.two(c.tanh()))[wide]
        if self.form == "product":
            return x * (self.one(c) * self.two(c))[wide]
        # Also read directly: folding it would add rows.
        scale = self.one(c)
        return x * (1 + scale)[wide] + scale.tanh()[wide]


@pytest.mark.parametrize(
    ("form", "count"),
    [("norm", 2), ("chunk", 2), ("slice", 2), ("two inputs", 0), ("product", 0), ("twice", 0)],
)
def test_arithmetic_goes_into_the_linears(
    monkeypatch: pytest.MonkeyPatch, form: str, count: int
) -> None:
    module = frozen(Modulated(form))
    example = torch.zeros(2, 6, 4, 4), torch.zeros(2, 5)
    on_cpu = optimize(module, example=example)
    assert {row.name: row.matched for row in on_cpu.passes}["fold-affine"] == 0
    as_for_a_gpu(monkeypatch)
    result = optimize(module, example=example)
    assert {row.name: row.matched for row in result.passes}["fold-affine"] == count
    if count:
        assert not {"mul", "add", "sub", "div", "neg"} & set(calls(result.module))  # type: ignore[arg-type]
    inputs = torch.randn(3, 6, 4, 4), torch.randn(3, 5)
    torch.testing.assert_close(result.module(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


def biggan_deep() -> nn.Module:
    """Four blocks and an attention."""
    config = BigGANDeepConfig(
        output_dim=16,
        z_dim=8,
        class_embed_dim=8,
        channel_width=16,
        num_classes=10,
        layers=((True, 16, 8), (False, 8, 4), (False, 4, 2), (True, 2, 1)),
        attention_layer_position=2,
        eps=1e-4,
        n_stats=51,
    )
    torch.manual_seed(0)
    return frozen(BigGANDeepNetwork(config))


VIEWS = {"slice", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "sym_size", "split"}


def casts(module: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """The calls in a bfloat16 forward that only change a dtype."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with Casts() as seen, torch.autocast("cuda", torch.bfloat16):
        module(images, 1.0)
    return seen.count


class Casts(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_calls_of_biggan_deep_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only products and the operators between them; in bfloat16 no weight is cast."""
    as_for_a_gpu(monkeypatch)
    body, _ = rewrite(biggan_deep(), (torch.randn(2, 16), 1.0), ())
    counted = {name: n for name, n in calls(body).items() if name not in VIEWS}
    assert counted == {
        "conv2d": 21,
        "cond_norm_act": 22,
        "linear": 1,
        "scaled_dot_product_attention": 1,
        "max_pool2d": 2,
        "tanh": 1,
    }
    with FakeTensorMode(allow_non_fake_inputs=False):
        to_fake_gpu(body)
        condition = torch.empty(4, 16, device="cuda")
        before = casts(body, condition, monkeypatch)
        after = casts(rounded(body, torch.bfloat16), condition, monkeypatch)
    # The weights of 21 convolutions and of the Linear, the last one's bias and the Linear's.
    assert before - after == 24
    # The condition, and where torch has no kernel of its own, on fake tensors, attention.
    assert after <= 6


@torch.no_grad()
def test_weights_rounded_once_give_the_same_bits() -> None:
    generator = optimize(generators.load("letters")).module
    source = FrozenGenerator(generator)  # type: ignore[arg-type]
    latents, labels = source.latents(5, seed=0, start=0), torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = source.generate(latents, labels, "class").float()
    state = {name: value.clone() for name, value in generator.state_dict().items()}
    made = source.generate(latents, labels, "class", precision="bfloat16")
    assert torch.equal(made, expected)
    exact = source.generate(latents, labels, "class")
    assert not torch.equal(made, exact)
    # The generator itself is unchanged; the copy shares its tensors except for the weights.
    assert all(torch.equal(value, state[name]) for name, value in generator.state_dict().items())
    ours, theirs = source._rounded.state_dict(), generator.state_dict()
    assert ours.keys() == theirs.keys()
    shared = [n for n in ours if ours[n].data_ptr() == theirs[n].data_ptr()]
    assert {ours[n].dtype for n in shared} == {torch.float32}
    assert {ours[n].dtype for n in ours if n not in shared} == {torch.bfloat16}
    # Without a rewritten graph nothing is rounded in advance: a module may read its weights in other ways.
    plain = generators.load("letters")
    assert rounded(plain, torch.bfloat16) is plain
