"""How the forward is executed: when it is compiled, in which precision, and that nothing else changes."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils._pytree import tree_leaves

from on_disk import ready, trained
from ptgm_fast import models
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage, make_stages, run_stages
from ptgm_fast.training import execution
from ptgm_fast.training.context import Context
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.execution import GPU_BREAK_EVEN_STEPS, CompileClock, decide, wrap

Tiny = Callable[..., RunConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
WITH, WITHOUT = torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 3)


@pytest.mark.parametrize("steps", [1, 600, 10**7])
def test_auto_never_compiles_on_cpus(steps: int) -> None:
    for network in (WITH, WITHOUT):
        assert not decide("auto", network, CPU, steps=steps, group=ProcessGroup()).compiled


def test_auto_compiles_long_stages_on_gpus() -> None:
    few = decide("auto", WITH, GPU, steps=GPU_BREAK_EVEN_STEPS - 1, group=ProcessGroup())
    many = decide("auto", WITH, GPU, steps=GPU_BREAK_EVEN_STEPS, group=ProcessGroup())
    assert (few.compiled, many.compiled) == (False, True)
    assert str(GPU_BREAK_EVEN_STEPS) in few.reason


def test_named_choices_are_kept() -> None:
    assert decide("always", WITH, CPU, steps=1, group=ProcessGroup()).compiled
    assert not decide("never", WITH, GPU, steps=10**9, group=ProcessGroup()).compiled


def test_statistics_of_several_processes_are_not_compiled() -> None:
    several = ProcessGroup(0, 2)
    assert not decide("auto", WITH, GPU, steps=10**9, group=several).compiled
    assert decide("auto", WITHOUT, GPU, steps=10**9, group=several).compiled
    assert decide("always", WITHOUT, CPU, steps=1, group=several).compiled
    with pytest.raises(UserError, match="network without batch norm"):
        decide("always", WITH, CPU, steps=1, group=several)


def network() -> models.TargetNetwork:
    torch.manual_seed(0)
    built = models.build("ptgm:resnet-small", num_classes=3, channels=1, image_size=8)
    return models.TargetNetwork(built, num_classes=3)


def test_precision_is_that_of_the_forward_only() -> None:
    images = torch.randn(4, 1, 8, 8)
    net = network()
    plain = net.to(memory_format=torch.channels_last).features(images)
    outputs = {}
    for precision in ("auto", "float32", "bfloat16"):
        features = wrap(net, device=CPU, precision=precision, compiled=False, group=ProcessGroup())
        net.load_state_dict(network().state_dict())
        outputs[precision] = features(images)
        assert outputs[precision].dtype == torch.float32
    assert torch.equal(outputs["auto"], plain)
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
    """Each shape and mode once, at its first use; nothing more for the later steps, and nothing for evaluation."""
    settings = (
        "stages=['p-ssl']",
        "training.steps=6",
        "training.validate_every=2",
        "training.lr=0.01",
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
    """So they can be made ahead of time: the same before and after the weights have changed, in any order."""
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
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
