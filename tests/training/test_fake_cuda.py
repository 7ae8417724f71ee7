"""A whole step of each stage on fake CUDA tensors: what can be checked without a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from on_disk import ready
from ptgm_fast.config import RunConfig
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.spans import no_spans
from ptgm_fast.training.context import Context
from ptgm_fast.training.loop import descend
from ptgm_fast.training.optim import ExponentialMovingAverage, build_optimizer
from ptgm_fast.training.options import OptimizerOptions
from ptgm_fast.training.pssl_options import PSSL_METHODS
from ptgm_fast.training.stage import Stage
from ptgm_fast.training.state import TrainingState

sys.path.insert(0, str(Path(__file__).parent))
from fake_cuda import GPU, OffTheDevice, fake_gpu, on_gpu

Tiny = Callable[..., RunConfig]
# A plan to work ahead tries a sample, whose random numbers a fake device does not have.
NO_TRIAL = "engine.overlap=never"
POLICIES = ("concat", "split", "target-only")


def form(values: Any) -> list[tuple[Any, ...]]:
    found = [v for v in tree_leaves(values) if isinstance(v, Tensor)]
    return [(tuple(v.shape), v.dtype) for v in found]


def step_of(stage: Stage) -> dict[str, Any]:
    """Run one step; return the forms of its batch, terms, gradients and weights."""
    state = TrainingState(stage.network, stage.options)
    stage.network.train()
    batch = stage.make_batch(0)
    terms = stage.losses(0, batch, state.average_network)
    descend(stage, state, terms["loss"], Context())
    parameters = dict(stage.network.named_parameters())
    return {
        "batch": form(batch),
        "terms": {k: form(v) for k, v in terms.items()},
        "gradients": {k: p.grad if p.grad is None else form(p.grad) for k, p in parameters.items()},
        "weights": form(list(parameters.values())),
        "average": form(list(state.average_network.state_dict().values()))
        if state.average_network
        else [],
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [("pp", ()), ("supervised", ("supervised.distillation=soft-target",))]
    + [("p-ssl", ("p_ssl.method=uda", f"p_ssl.batch_norm={policy}")) for policy in POLICIES]
    + [
        ("p-ssl", (f"p_ssl.method={m}", "p_ssl.batch_norm=concat", "training.gradient_clip=1.0"))
        for m in PSSL_METHODS
    ]
    + [("p-ssl", ("p_ssl.method=fixmatch", "p_ssl.teacher=ema", "precision=float32"))]
    + [("p-ssl", ("p_ssl.source_label=condition", "p_ssl.distillation=logit-matching"))],
    ids=str,
)
def test_a_whole_step_stays_on_the_device(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str, settings: tuple[str, ...]
) -> None:
    task = build_task(tiny(NO_TRIAL, *settings))
    on_cpu = step_of(ready(make_stage(name, task, task.new_network())))
    network = task.new_network()
    with fake_gpu(monkeypatch) as mode:
        stage = ready(make_stage(name, on_gpu(task, mode), network.to(GPU)))
        with OffTheDevice() as elsewhere:
            on_device = step_of(stage)
        made = [stage.make_batch(1), list(network.parameters()), stage.table.soft_labels if name == "p-ssl" else ()]  # fmt: skip
    assert on_device == on_cpu
    assert elsewhere.ran > 100
    assert elsewhere.found == []
    for value in tree_leaves(made):
        if isinstance(value, Tensor):
            assert isinstance(value, FakeTensor)
            assert value.device == GPU
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.device == GPU


@pytest.mark.parametrize("name", ["pp", "p-ssl"])
def test_numbers_of_a_replay_are_read_on_the_device(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`make` works with its inputs in device memory, as in a capture; reading one on the host raises."""
    task = build_task(tiny(NO_TRIAL, "p_ssl.method=uda"))
    network = task.new_network()
    with fake_gpu(monkeypatch) as mode:
        fake = on_gpu(task, mode)
        stage = ready(make_stage(name, fake, network.to(GPU)))
        inputs = [
            i if isinstance(i, Tensor) else torch.full((1,), i, dtype=torch.int64, device=GPU)
            for i in stage.batch_inputs(3)
        ]
        with torch.no_grad(), OffTheDevice() as elsewhere:
            made = stage.make(no_spans, *inputs)
        assert elsewhere.found == []
        assert form(made) == form(stage.make_batch(3))
        honest = fake.source.latents
        monkeypatch.setattr(
            fake.source,
            "latents",
            lambda count, *, seed, start: honest(count, seed=seed, start=int(start)),
        )
        with pytest.raises(DataDependentOutputException):
            stage.make(no_spans, *inputs)


def test_a_tensor_left_on_the_cpu_is_found(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(tiny(NO_TRIAL))
    network = task.new_network()
    with fake_gpu(monkeypatch) as mode:
        stage = make_stage("pp", on_gpu(task, mode), network.to(GPU))
        honest = stage.make
        stage.make = lambda *a: (lambda b: b._replace(inputs=b.inputs.cpu().to(GPU)))(honest(*a))  # type: ignore[method-assign]
        with OffTheDevice() as elsewhere:
            stage.make_batch(0)
    assert elsewhere.found == ["aten._to_copy.default"]


class Products(TorchDispatchMode):
    """Records the dtypes that convolutions and losses compute in."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: Counter[torch.dtype] = Counter()
        self.losses: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.convolutions[args[0].dtype] += 1
        elif func in LOSSES:
            self.losses |= {
                a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()
            }
        return func(*args, **(kwargs or {}))


LOSSES = (
    torch.ops.aten._softmax.default,
    torch.ops.aten._log_softmax.default,
    torch.ops.ptgm_fast.consistency.default,
)


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_every_network_of_a_step_computes_in_the_runs_precision(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Generator, source classifier, student and the average that teaches it; losses are float32."""
    settings = ("p_ssl.method=uda", "p_ssl.teacher=ema", "p_ssl.distillation=soft-target")
    task = build_task(tiny(NO_TRIAL, *settings, f"precision={precision}"))
    network = task.new_network()
    with fake_gpu(monkeypatch) as mode:
        stage = ready(make_stage("p-ssl", on_gpu(task, mode), network.to(GPU)))
        with Products() as products:
            step_of(stage)
    computed = torch.bfloat16 if precision == "auto" else torch.float32
    assert set(products.convolutions) == {computed}
    assert products.losses == {torch.float32}


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_of_the_optimizer_is_a_call_a_group(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also one call for the moving average, and one more for the counters of its batch norms."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))  # fmt: skip
    options = OptimizerOptions(optimizer=name)  # type: ignore[arg-type]
    assert not build_optimizer(network, options).param_groups[0]["fused"]
    with fake_gpu(monkeypatch):
        optimizer = build_optimizer(network.to(GPU), options)
        average = ExponentialMovingAverage(network, 0.9)
        for _ in range(2):
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            with Calls() as calls:
                optimizer.step()
                average.update(network)
    counted = {n: c for n, c in calls.count.items() if not n.startswith(("profiler", "prim"))}
    expected = {f"aten::_fused_{name}_": 2, "aten::_foreach_lerp_": 1, "aten::_foreach_copy_": 1}
    if name == "adamw":
        expected |= {"aten::_foreach_add_": 2}
    assert counted == expected
