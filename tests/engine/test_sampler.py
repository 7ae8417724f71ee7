"""FastSampler: the same bits however it runs; conditions, reuse, failures, workers, memory."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ptgm_fast import FastSampler, generators
from ptgm_fast.engine.blocks import BLOCK, GROUP_BLOCKS, generated
from ptgm_fast.generators import Generator

SAMPLES = 150


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def letters() -> Generator:
    return generators.load("letters")


def gathered(batches: list[Any], num: int = SAMPLES) -> list[torch.Tensor]:
    """The first samples, regardless of their batches."""
    fields = [f for f in ("images", "strong", "labels", "indices", "soft_labels") if getattr(batches[0], f) is not None]  # fmt: skip
    return [torch.cat([getattr(b, f) for b in batches])[:num] for f in fields]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


RUNS: list[dict[str, Any]] = [
    {"batch_size": 50, "overlap": "always"},
    {"batch_size": 50, "overlap": "always", "depth": 1},
    {"batch_size": 30, "overlap": "always", "depth": 8},
    {"batch_size": 150, "overlap": "never"},
    {"batch_size": 7, "overlap": "auto"},
]


@pytest.mark.parametrize("reuse", [1, 2])
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_same_bits_however_it_is_run(letters: Generator, run: dict[str, Any], reuse: int) -> None:
    def samples(start: int = 0, **options: Any) -> list[torch.Tensor]:
        options = {"seed": 5, "views": ("weak", "strong"), "reuse": reuse, **options}
        with FastSampler(letters, **options) as sampler:
            num = -(-(SAMPLES - start) // options["batch_size"])
            return gathered(list(sampler.uniform(num, start=start)), SAMPLES - start)

    first = samples(batch_size=50, overlap="never")
    assert same(samples(**run), first)
    assert same(samples(start=64, **run), [x[64:] for x in first])
    assert not torch.equal(samples(seed=6, **run)[0], first[0])


def test_conditioned_on_target_images(letters: Generator) -> None:
    classifier = generators.load_classifier("letters")
    targets = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).repeat(4)
    outcomes = []
    for size, overlap in ((80, "never"), (32, "always"), (7, "auto")):
        with FastSampler(letters, batch_size=size, overlap=overlap) as sampler:
            asked = sampler.conditioned(classifier, targets, temperature=2.0)
            batches = list(asked.batches(order))
            outcomes.append(gathered(batches, 80))
            assert [len(b.labels) for b in batches][-1] == (80 % size or size)
            resumed = gathered(list(asked.batches(order, start=33)), 47)
            assert same(resumed, [x[33:] for x in outcomes[-1]])
    assert same(outcomes[0], outcomes[1])
    assert same(outcomes[0], outcomes[2])
    _, rows, numbers, soft = outcomes[0]
    assert torch.equal(rows, order)
    assert torch.equal(numbers, torch.arange(80))
    logits = classifier((targets.float() / 255 - 0.5) / 0.5)
    torch.testing.assert_close(soft, (logits / 2).softmax(1)[order], atol=1e-5, rtol=1e-4)
    with pytest.raises(IndexError, match=r"must lie in \[0, 20\)"):
        asked.batches([20])


def test_labels_of_ones_own(letters: Generator) -> None:
    with FastSampler(letters, batch_size=70, views="weak") as sampler:
        uniform = next(iter(sampler.uniform(1, start=10)))
        same_labels = sampler.sample(labels=uniform.labels, start=10)
        assert torch.equal(same_labels.images, uniform.images)
        soft = torch.nn.functional.one_hot(uniform.labels, 52).float()
        by_soft = sampler.sample(labels=soft, start=10)
        torch.testing.assert_close(by_soft.images, uniform.images, atol=1e-4, rtol=0)
        assert torch.equal(by_soft.labels, uniform.labels)


def test_reuse_serves_an_image_again_under_another_view(letters: Generator) -> None:
    with FastSampler(letters, batch_size=128, views="weak", reuse=3, overlap="never") as sampler:
        batches = list(sampler.uniform(6))
        assert sampler.summary() == {"synthesized": 256, "served": 768}
    behind = torch.cat([b.generated for b in batches])
    images = torch.cat([b.images for b in batches])
    labels = torch.cat([b.labels for b in batches])
    assert behind.bincount().tolist() == [3] * 256
    for number in (0, 77, 255):
        served = images[behind == number]
        assert len(labels[behind == number].unique()) == 1
        assert min((served[i] - served[j]).abs().max() for i, j in ((0, 1), (1, 2), (0, 2))) > 0.01
    for batch in batches:
        assert len(batch.generated.unique()) == len(batch.generated)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 700), st.integers(1, 4), st.integers(1, 900))
def test_runs_cover_what_is_asked_for(start: int, num: int, reuse: int, num_images: int) -> None:
    found = [n for run in generated(range(start, start + num), reuse) for n in run]
    assert len(found) == num
    if reuse > 1:
        group = GROUP_BLOCKS * BLOCK
        expected = [(s // group // reuse) * group + s % group for s in range(start, start + num)]
        assert found == expected
    total = num_images * reuse
    served = [n for run in generated(range(total), reuse, num_images) for n in run]
    assert sorted(served) == sorted(list(range(num_images)) * reuse)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader_workers_share_the_batches(letters: Generator, workers: int) -> None:
    with FastSampler(letters, batch_size=20, views="weak", overlap="never") as sampler:
        expected = gathered(list(sampler.uniform(7)), 140)
        loader = DataLoader(sampler.uniform(7), batch_size=None, num_workers=workers)
        assert same(gathered(list(loader), 140), expected)


class Broken(Generator):
    """Fails at its third block; its network is a single parameter."""

    def __init__(self, card: Any) -> None:
        super().__init__()
        self.card, self.calls = card, 0
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def generate(
        self, latents: Any, condition: Any, *, kind: Any = None, truncation: Any = None
    ) -> Any:
        self.calls += len(latents) > 1  # a single one is the plan's
        if self.calls == 3:
            raise ArithmeticError("lens cap on")
        return latents.new_zeros(len(latents), 1, 28, 28)


@pytest.mark.parametrize("overlap", ["always", "never"])
def test_a_failure_names_its_samples_and_leaves_nothing(letters: Generator, overlap: str) -> None:
    before = threading.active_count()
    with (
        FastSampler(Broken(letters.card), batch_size=64, overlap=overlap) as sampler,
        pytest.raises(ArithmeticError, match="lens cap on") as caught,
    ):
        list(sampler.uniform(10))
    assert caught.value.__notes__ == ["while making batch 2 (samples 128 to 191)"]
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_leaving_the_block_ends_threads_and_gives_cores_back(letters: Generator) -> None:
    before = threading.active_count()
    with FastSampler(letters, batch_size=8, overlap="always") as sampler:
        iterators = [iter(sampler.uniform()), iter(sampler)]
        for iterator in iterators:
            next(iterator)
        assert threading.active_count() > before
    assert threading.active_count() == before
    del iterators, iterator
    gc.collect()
    assert torch.get_num_threads() == 2


def test_mistakes(letters: Generator) -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"reuse": 2}, "pass views"),
        ({"overlap": True}, "overlap must be"),
        ({"views": "wild"}, "unknown view preset"),
    ):
        with pytest.raises(ValueError, match=message):
            FastSampler(letters, **{"batch_size": 4, **options})
    with pytest.raises(TypeError, match="endless"):
        len(FastSampler(letters, batch_size=4).uniform())
    with pytest.raises(ValueError, match="at least one label"):
        FastSampler(letters, batch_size=4).sample(labels=torch.zeros(0, dtype=torch.int64))


class Small(Broken):
    def generate(
        self, latents: Any, condition: Any, *, kind: Any = None, truncation: Any = None
    ) -> Any:
        return latents.new_zeros(len(latents), 1, 4, 4)


@pytest.mark.slow
def test_ten_thousand_batches_leave_nothing_behind(letters: Generator) -> None:
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with FastSampler(Small(letters.card), batch_size=16, views="weak", overlap="always") as sampler:
        stream = iter(sampler.uniform(10_000))
        tracemalloc.start()
        for _ in range(2000):
            next(stream)
        before = resident(), tracemalloc.get_traced_memory()[0]
        num = sum(1 for _ in stream)
        after = resident(), tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert num == 8000
    assert after[0] - before[0] < 8e6
    assert after[1] - before[1] < 2e5
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= files  # noqa: PTH208


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_consumer_may_read_ahead_on_a_gpu() -> None:
    generator = generators.load("letters").cuda()
    served = []
    for overlap in ("never", "always"):
        with FastSampler(generator, batch_size=48, views="weak", overlap=overlap, depth=2) as made:  # type: ignore[arg-type]
            served.append(list(made.uniform(12)))
    for one, two in zip(*served, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
