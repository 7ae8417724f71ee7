"""Execution of the forward: when it is compiled, in which precision, and that nothing else changes."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from on_disk import ready, trained
from ptgm_fast import models
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage, make_stages, run_stages
from ptgm_fast.training import execution
from ptgm_fast.training.compiling import Traffic, bytes_a_second, traffic
from ptgm_fast.training.context import Context
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.execution import (
    COMPILE_SECONDS,
    COMPILE_SECONDS_A_CALL,
    FORWARDS_A_STEP,
    CompileClock,
    Decision,
    decide,
    wrap,
)

Tiny = Callable[..., RunConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def network(name: str = "ptgm:resnet-small") -> models.TargetNetwork:
    torch.manual_seed(0)
    built = models.build(name, num_classes=3, channels=1, image_size=8)
    return models.TargetNetwork(built, num_classes=3)


def decided(
    choice: str, net: models.TargetNetwork, device: torch.device, steps: int, **options: Any
) -> Decision:
    defaults = {"shape": (4, 1, 8, 8), "precision": "float32", "group": ProcessGroup()}
    return decide(choice, net, device, steps=steps, **{**defaults, **options})


@pytest.fixture
def slow_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with a bandwidth of a million bytes per second."""
    monkeypatch.setattr(execution, "bytes_a_second", lambda device: 1e6)


@pytest.fixture(scope="module")
def without_norm() -> models.TargetNetwork:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    return models.TargetNetwork(layers, num_classes=3)


@pytest.mark.parametrize("steps", [1, 600, 10**7])
def test_auto_never_compiles_on_cpus(steps: int, without_norm: models.TargetNetwork) -> None:
    for net in (network(), without_norm):
        assert not decided("auto", net, CPU, steps).compiled


@pytest.mark.usefixtures("slow_memory")
def test_auto_compiles_on_gpus_where_the_seconds_come_back() -> None:
    net = network()
    found = traffic(net, net.features, (4, 1, 8, 8))
    each = FORWARDS_A_STEP * found.saved_bytes / 1e6
    seconds = COMPILE_SECONDS + COMPILE_SECONDS_A_CALL * found.calls
    steps = int(seconds / each)
    few, many = (decided("auto", net, GPU, n) for n in (steps, steps + 1))
    assert (few.compiled, many.compiled) == (False, True)
    assert f"in {steps} steps fusion saves about {steps * each:.0f} s" in few.reason
    assert f"compiling takes about {seconds:.0f} s" in few.reason
    # Half the bytes in bfloat16; twice the images, twice the bytes.
    assert not decided("auto", net, GPU, steps + 1, precision="bfloat16").compiled
    assert decided("auto", net, GPU, steps + 1, precision="bfloat16", shape=(8, 1, 8, 8)).compiled


def test_the_traffic_that_fusion_saves() -> None:
    """For a norm and a ReLU between two convolutions: the norm's output is neither written nor read."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = traffic(net, net, (4, 3, 18, 18))
    assert found == Traffic(4, 2 * 4 * 8 * 16 * 16 * 4)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # There is nothing between these; what the caller gets must be written.
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.ReLU())
    assert traffic(plain, plain, (4, 3, 18, 18)) == Traffic(3, 0)


def test_a_network_that_reads_values_is_not_compiled() -> None:
    net = network()
    features = net.features
    net.features = lambda images: features(images * float(images.max()))  # type: ignore[method-assign]
    found = decided("auto", net, GPU, 10**9)
    assert not found.compiled
    assert "cannot be estimated" in found.reason


def test_a_gpus_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100's, by torch's own numbers: 2,619 MHz and 5,120 bits are 3.35 TB/s."""
    known = SimpleNamespace(memory_clock_rate=2619000, memory_bus_width=5120)
    for properties, expected in ((known, 3.352e12), (SimpleNamespace(), 1e12)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        assert bytes_a_second(GPU) == pytest.approx(expected, rel=1e-3)


def test_named_choices_are_kept() -> None:
    assert decided("always", network(), CPU, 1).compiled
    assert not decided("never", network(), GPU, 10**9).compiled


@pytest.mark.usefixtures("slow_memory")
def test_statistics_of_several_processes_are_not_compiled(
    without_norm: models.TargetNetwork,
) -> None:
    several = ProcessGroup(0, 2)
    assert not decided("auto", network(), GPU, 10**9, group=several).compiled
    assert decided("auto", without_norm, GPU, 10**9, group=several).compiled
    assert decided("always", without_norm, CPU, 1, group=several).compiled
    with pytest.raises(UserError, match="network without batch norm"):
        decided("always", network(), CPU, 1, group=several)


def test_precision_is_that_of_the_forward_only() -> None:
    images = torch.randn(4, 1, 8, 8)
    net = network()
    plain = net.to(memory_format=torch.channels_last).features(images)
    outputs = {}
    for precision in ("float32", "bfloat16"):
        features = wrap(net, device=CPU, precision=precision, compiled=False, group=ProcessGroup())
        net.load_state_dict(network().state_dict())
        outputs[precision] = features(images)
        assert outputs[precision].dtype == torch.float32
    assert torch.equal(outputs["float32"], plain)
    error = (outputs["bfloat16"] - plain).abs().max() / plain.abs().max()
    # bfloat16 has 8 bits of mantissa: visible, and small.
    assert 1e-5 < error < 0.1
    outputs["bfloat16"].sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.network.parameters())


@pytest.mark.parametrize("stage", ["pp", "p-ssl"])
def test_the_generator_computes_in_the_precision_too(tiny: Tiny, stage: str) -> None:
    made = {}
    for precision in ("auto", "float32", "bfloat16"):
        task = build_task(tiny(f"precision={precision}"))
        batch = ready(make_stage(stage, task, task.new_network())).make_batch(0)
        made[precision] = batch.inputs if stage == "pp" else batch.weak
        assert made[precision].dtype == torch.float32
    assert torch.equal(made["auto"], made["float32"])
    error = (made["bfloat16"] - made["float32"]).abs().max() / made["float32"].abs().max()
    assert 1e-5 < error < 0.1


def test_the_decision_is_in_the_summary(tiny: Tiny) -> None:
    task = build_task(tiny("training.steps=2", "pp.steps=2"))
    for result in run_stages(make_stages(task, task.new_network()), Context()):
        stage = result.as_dict()
        assert stage["compiled"] is False
        assert "CPU" in stage["compile_reason"]
        assert stage["compile_seconds"] == 0.0


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bfloat16_of_the_forward_alone_where_the_processor_multiplies_it(
    tiny: Tiny, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    few = ("training.steps=2", "pp.steps=2")
    task = build_task(tiny(*few))
    network = task.new_network()
    results = [result.as_dict() for result in run_stages(make_stages(task, network), Context())]
    assert {stage["precision"] for stage in results} == {"bfloat16" if native else "float32"}
    plain = trained(tiny(*few, "precision=float32"))
    same = [torch.equal(value, plain[name]) for name, value in network.export_state().items()]
    assert all(same) is not native


def test_labels_of_a_step_are_rounded_with_the_forward_and_those_of_images_are_not(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    made = []
    for precision in ("auto", "float32"):
        task = build_task(tiny(f"precision={precision}"))
        stage: Any = ready(make_stage("p-ssl", task, task.new_network()))
        batch: Any = stage.make_batch(0)
        made.append((stage.table.soft_labels, batch.weak, batch.labelled.source_logits))
    (table, weak, logits), (exact_table, exact_weak, exact_logits) = made
    assert torch.equal(table, exact_table)
    assert torch.equal(weak, exact_weak)
    error = (logits - exact_logits).abs().max() / exact_logits.abs().max()
    assert 1e-5 < error < 0.1


def test_precision_has_an_effect_on_a_run(tiny: Tiny) -> None:
    few = ("training.steps=3", "pp.steps=2")
    one, other = (trained(tiny(*few, f"precision={p}")) for p in ("float32", "bfloat16"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(value.isfinite().all() for value in other.values())


@pytest.mark.parametrize("compiled", [True, False])
def test_compile_seconds_are_what_the_first_step_took_longer(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(execution.time, "perf_counter", lambda: now)
    clock = CompileClock(CPU, compiled)
    for seconds in (30.0, 1.0, 1.5, 1.25, 9.0, 1.0):
        with clock.step():
            now += seconds
    assert clock.seconds == (30.0 - 1.375 if compiled else 0.0)


def test_a_gpu_is_made_deterministic_for_the_time_of_a_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn

    def flags() -> tuple[bool, ...]:
        algorithms = torch.are_deterministic_algorithms_enabled()
        return algorithms, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32

    monkeypatch.setattr(cudnn, "benchmark", True)
    before = flags()
    for wanted, device in ((True, CPU), (False, GPU)):
        with execution.deterministic(wanted, device):
            assert flags() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with execution.deterministic(True, GPU):
        assert flags() == (True, True, False, before[3])
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert flags() == before


@pytest.fixture
def own_compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("own_compiler_cache")
def test_compiled_training_is_the_same_training_and_compiles_once_a_shape(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shape and mode is compiled once, at its first use; nothing is compiled for later steps or for evaluation."""
    settings = (
        "stages=['p-ssl']",
        "training.steps=6",
        "training.validate_every=2",
        "training.lr=0.01",
        "precision=float32",
    )
    settings += ("p_ssl.batch_norm=concat", "p_ssl.method=uda", "p_ssl.threshold=0.0")
    results, counts = {}, []
    from torch._dynamo.utils import counters

    for choice in ("never", "always"):
        counters.clear()
        task = build_task(tiny(*settings, f"compile={choice}"))
        graphs: list[int] = []
        context = Context(
            on_step=lambda stage, step, steps, seen=graphs: seen.append(
                counters["stats"]["unique_graphs"]
            )
        )
        network = task.new_network()
        (result,) = run_stages(make_stages(task, network), context)
        results[choice] = network.export_state()
        counts.append(graphs)
        assert result.compiled is (choice == "always")
    assert set(counts[0]) == {0}
    # The training forward of both batches and the teacher's forward.
    assert set(counts[1]) == {2}
    assert result.compile_seconds > 0.1
    for name, value in results["never"].items():
        torch.testing.assert_close(results["always"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", ["pp", "p-ssl"])
def test_batches_depend_on_no_weights_that_are_trained(tiny: Tiny, stage: str) -> None:
    """So they can be prefetched: they are the same before and after the weights change, in any order."""
    task = build_task(tiny("p_ssl.method=uda"))
    network = task.new_network()
    made = ready(make_stage(stage, task, network))
    before = [tree_leaves(made.make_batch(step)) for step in (0, 1, 5)]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    torch.manual_seed(99)
    after = [tree_leaves(made.make_batch(step)) for step in (5, 1, 0)][::-1]
    for one, two in zip(before, after, strict=True):
        pairs = [(a, b) for a, b in zip(one, two, strict=True) if a is not None or b is not None]
        assert pairs
        assert all(torch.equal(a, b) for a, b in pairs)
