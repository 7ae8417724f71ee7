"""A whole step of each stage on fake CUDA tensors: no GPU has run it, and this is what can be known without one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._pytree import tree_leaves

from on_disk import ready
from ptgm_fast.config import RunConfig
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.spans import no_spans
from ptgm_fast.training.context import Context
from ptgm_fast.training.loop import descend
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
    """One step, and the forms of what it made: the batch, the terms, the gradients, the weights."""
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
    """`make` with its inputs in device memory, as a capture gives them, and with one read on the host: that is refused."""
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
