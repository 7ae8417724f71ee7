"""A captured synthesis step, with a stand-in for CUDA graphs that replays operators: new inputs, the same bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from on_disk import ready
from ptgm_fast import FastSampler, generators, kernels
from ptgm_fast.config import RunConfig
from ptgm_fast.engine import CapturedStep, sampler
from ptgm_fast.engine.capture import WARM_UPS
from ptgm_fast.generators import Generator
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training import prefetch
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.prefetch import replayed as replayed_batches

sys.path.insert(0, str(Path(__file__).parent))
from graphs import StandInForCudaGraphs

Tiny = Callable[..., RunConfig]
CPU = torch.device("cpu")
STARTS = (0, 8, 16, 800, 8, 2**40)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> StandInForCudaGraphs:
    """Use the stand-in wherever the engine captures; a CPU counts as a device with graphs."""
    stand_in = StandInForCudaGraphs()
    for module in (sampler, prefetch):
        monkeypatch.setattr(module, "CapturedStep", partial(CapturedStep, cuda=stand_in))
    return stand_in


def samples(start: int | Tensor) -> tuple[Tensor, Tensor]:
    """Latents and labels of eight samples, followed by some arithmetic."""
    labels = kernels.class_labels(8, 6, seed=3, start=start, device=CPU)
    latents = kernels.latents(8, 4, seed=5, start=start, device=CPU)
    return (latents * 2).tanh().view(8, 2, 2), labels


def assert_replays_equal(captured: Any, plain: Callable[..., Any], calls: list[Any]) -> None:
    for inputs in calls:
        made, expected = tree_leaves(captured(*inputs)), tree_leaves(plain(*inputs))
        assert len(made) == len(expected)
        for one, two in zip(made, expected, strict=True):
            if isinstance(two, Tensor):
                assert one.dtype == two.dtype
                assert torch.equal(one, two), f"call {inputs}"
            else:
                assert one == two


def test_replays_make_the_samples_whose_numbers_lie_in_memory() -> None:
    stand_in, ran = StandInForCudaGraphs(), []

    def step(start: int | Tensor) -> tuple[Tensor, Tensor]:
        ran.append(start)
        return samples(start)

    captured = CapturedStep(step, CPU, stand_in)
    assert_replays_equal(captured, samples, [(start,) for start in STARTS])
    assert stand_in.replays == len(STARTS)
    # Python runs for the warm-ups and the capture only; its inputs were in memory.
    assert len(ran) == WARM_UPS + 1
    assert all(isinstance(start, Tensor) and start.dtype == torch.int64 for start in ran)
    assert stand_in.modes == ["thread_local"]


def test_tensors_are_copied_in_and_never_held_on_to() -> None:
    rows = torch.arange(5)
    captured = CapturedStep(lambda index, start: index * 2 + start, CPU, StandInForCudaGraphs())
    first = captured(rows, 1).clone()
    rows.fill_(7)
    assert torch.equal(first, torch.arange(5) * 2 + 1)
    assert torch.equal(captured(rows, 3), torch.full((5,), 17))
    assert torch.equal(captured(torch.arange(5), 1), first)


@pytest.mark.parametrize(
    "baked",
    [
        lambda start: samples(int(start)),
        lambda start: (samples(start)[0], samples(start.item())[1]),
        lambda start: (samples(start)[0] * float(start + 1), samples(start)[1]),
    ],
    ids=["all of it", "the labels", "a factor"],
)
def test_a_number_read_on_the_host_is_noticed(baked: Callable[[Any], Any]) -> None:
    """The comparison in these tests can fail: a value read in the step's Python stays that of the capture."""
    captured = CapturedStep(baked, CPU, StandInForCudaGraphs())
    with pytest.raises(AssertionError, match="call"):
        assert_replays_equal(captured, baked, [(torch.tensor([start]),) for start in STARTS])


@pytest.mark.parametrize(
    "other",
    [(torch.zeros(4), 0), (torch.zeros(5, 1), 0), (torch.zeros(5, dtype=torch.int64), 0)],
    ids=["length", "dimensions", "dtype"],
)
def test_other_shapes_and_dtypes_are_refused(other: tuple[Any, ...]) -> None:
    captured = CapturedStep(lambda x, start: x + start, CPU, StandInForCudaGraphs())
    captured(torch.zeros(5), 3)
    with pytest.raises(ValueError, match=r"captured for \['float32 \[5\]', 'int64 \[1\]'\], got"):
        captured(*other)
    with pytest.raises(ValueError, match="captured for"):
        captured(torch.zeros(5))
    assert torch.equal(captured(torch.ones(5), torch.tensor([2])), torch.full((5,), 3.0))


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("pp", ()),
        ("pp", ("pp.views=strong",)),
        ("p-ssl", ("p_ssl.method=uda",)),
        ("p-ssl", ("p_ssl.method=source-head", "p_ssl.source_label=classifier")),
        ("p-ssl", ("p_ssl.method=mse", "p_ssl.distillation=soft-target")),
        ("supervised", ("supervised.distillation=logit-matching",)),
    ],
    ids=str,
)
def test_a_stages_replays_are_its_batches(
    tiny: Tiny, graphs: StandInForCudaGraphs, stage: str, settings: tuple[str, ...]
) -> None:
    task = build_task(tiny(*settings))
    for group in (ProcessGroup(), ProcessGroup(1, 3)):
        made = ready(make_stage(stage, task, task.new_network(), group))
        replayed = replayed_batches(made)
        before = graphs.replays
        assert_replays_equal(replayed, made.make_batch, [(step,) for step in (0, 1, 7, 1000, 1)])
        assert graphs.replays == before + 5


@pytest.mark.parametrize("stage", ["pp", "p-ssl"])
def test_a_stage_that_reads_its_numbers_on_the_host_is_noticed(
    tiny: Tiny, graphs: StandInForCudaGraphs, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    task = build_task(tiny())
    made = ready(make_stage(stage, task, task.new_network()))
    honest = made.source.latents
    monkeypatch.setattr(
        made.source,
        "latents",
        lambda count, *, seed, start: honest(count, seed=seed, start=int(start)),
    )
    replayed = replayed_batches(made)
    with pytest.raises(AssertionError, match="call"):
        assert_replays_equal(replayed, made.make_batch, [(0,), (1,)])


@pytest.fixture(scope="module")
def letters() -> Generator:
    return generators.load("letters")


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_sampler_replays_the_same_bits(
    letters: Generator, graphs: StandInForCudaGraphs, reuse: int
) -> None:
    options: dict[str, Any] = {
        "batch_size": 40,
        "seed": 2,
        "views": "weak",
        "overlap": "never",
        "reuse": reuse,
    }
    plain, captured = FastSampler(letters, **options), FastSampler(letters, **options)
    captured._capture = True
    for start in (0, 1000):
        for one, two in zip(
            plain.uniform(4, start=start), captured.uniform(4, start=start), strict=True
        ):
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.labels, two.labels)
    images = torch.randint(0, 256, (5, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(28 * 28, 52))
    order = torch.arange(90) % 5
    asked = [s.conditioned(classifier, images.byte()) for s in (plain, captured)]
    for one, two in zip(*(a.batches(order) for a in asked), strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.soft_labels, two.soft_labels)
    # Uniform twice and conditioned once: a block of each is captured once, and replayed.
    assert len(graphs.modes) == 2
    assert graphs.replays >= 5
    for _ in range(2):
        labels = torch.arange(70) % 52
        assert torch.equal(*(s.sample(labels=labels, start=5).images for s in (plain, captured)))
    assert len(graphs.modes) == 2
    captured.close()
    assert torch.equal(*(s.sample(labels=labels, start=5).images for s in (plain, captured)))
    assert len(graphs.modes) == 3


def test_replays_of_two_streams_do_not_share_their_memory(
    letters: Generator, graphs: StandInForCudaGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing orders the replays of different streams."""
    made = FastSampler(letters, batch_size=64, overlap="never")
    made._capture = True
    for stream in ("one", "two", "one"):
        monkeypatch.setattr(torch.cpu, "current_stream", lambda device, now=stream: now)
        made.sample(labels=torch.arange(10))
    assert len(graphs.modes) == 2


@pytest.mark.parametrize(("current", "captured_on"), [("default", None), ("producer", "producer")])
def test_a_capture_names_its_device_and_stream(current: str, captured_on: str | None) -> None:
    """The default stream cannot be captured, so torch uses one of its own."""
    stand_in = StandInForCudaGraphs()
    stand_in.stream = current
    CapturedStep(lambda start: start + 1, CPU, cuda=stand_in)(3)
    assert (stand_in.streams, stand_in.devices) == ([captured_on], [CPU])


def test_what_a_replay_made_is_kept() -> None:
    captured = CapturedStep(lambda start: (start * 2, None), CPU, cuda=StandInForCudaGraphs())
    kept = [captured(n) for n in (1, 5, 9)]
    assert [made.item() for made, _ in kept] == [2, 10, 18]


def test_a_sampler_on_a_cpu_has_no_graph(letters: Generator) -> None:
    with pytest.raises(ValueError, match="CUDA graph; the generator is on cpu"):
        FastSampler(letters, batch_size=4, capture=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("stage", ["pp", "p-ssl"])
def test_a_stages_replays_are_its_batches_on_a_gpu(tiny: Tiny, stage: str) -> None:
    task = build_task(tiny("device=cuda"))
    made = ready(make_stage(stage, task, task.new_network()))
    replayed = replayed_batches(made)
    assert_replays_equal(replayed, made.make_batch, [(step,) for step in (0, 1, 7, 1000, 1)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_sampler_replays_the_same_bits_on_a_gpu() -> None:
    runs = []
    for capture in (False, True):
        generator = generators.load("letters").cuda()
        with FastSampler(generator, batch_size=40, views="weak", capture=capture) as made:
            runs.append([batch.images.clone() for batch in made.uniform(6)])
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
