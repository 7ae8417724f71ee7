"""`FastSampler` on a pool: the pool's bits under addressed views, as batches and as a map-style dataset."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from ptgm_fast import FastSampler, generators, kernels
from ptgm_fast.engine import Batch
from ptgm_fast.errors import UserError
from ptgm_fast.kernels.views import view_preset
from ptgm_fast.sampling import (
    ConditioningTable,
    FrozenGenerator,
    Pool,
    PoolOrder,
    Recipe,
    derive_seed,
    folder_pool,
    memory_pool,
    open_pool,
)


@pytest.fixture(scope="module")
def recipe(pair: Path) -> Recipe:
    return Recipe(FrozenGenerator(generators.load(str(pair))), seed=1)


@pytest.fixture
def folder(recipe: Recipe, tmp_path: Path) -> Path:
    folder_pool(recipe, 200, tmp_path / "pool").take(torch.arange(200))
    return tmp_path / "pool"


@pytest.fixture(scope="module")
def images(recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """The generator's own images, rounded."""
    blocks = [recipe.block(b) for b in range(4)]
    x, y = (torch.cat([b[i] for b in blocks])[:200] for i in (0, 1))
    return x, y


def gathered(batches: list[Batch], field: str) -> torch.Tensor:
    return torch.cat([getattr(b, field) for b in batches])


def test_batches_are_the_generators_images_under_the_samples_views(
    recipe: Recipe, folder: Path, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    numbers = PoolOrder(200, seed=5, purpose="sampler/pool order").indices(0, 480)
    x, y = images
    weak, strong = kernels.views(
        x[numbers],
        view_preset("weak"),
        view_preset("strong"),
        seed=derive_seed(5, "sampler/views"),
        start=0,
    )
    for pool in (folder, str(folder), open_pool(folder), memory_pool(recipe, 200)):
        for size, overlap in ((96, "never"), (40, "always"), (8, "auto")):
            with FastSampler(
                pool=pool,
                batch_size=size,
                seed=5,
                views=("weak", "strong"),
                overlap=overlap,  # type: ignore[arg-type]
            ) as sampler:
                batches = list(sampler.uniform(480 // size))
                assert sampler.counts.served == 480
                rest = list(sampler.uniform(2, start=200))
            assert torch.equal(gathered(batches, "images"), weak)
            assert torch.equal(gathered(batches, "strong"), strong)
            assert torch.equal(gathered(batches, "labels"), y[numbers])
            assert torch.equal(gathered(batches, "generated"), numbers)
            assert torch.equal(gathered(batches, "indices"), torch.arange(480))
            assert all(len(set(b.generated.tolist())) == size for b in batches)
            assert torch.equal(gathered(rest, "images"), weak[200 : 200 + 2 * size])


def test_without_views_images_are_served_as_they_are(
    folder: Path, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    sampler = FastSampler(pool=folder, batch_size=50)
    batch = next(iter(sampler))
    assert torch.equal(batch.images, images[0][:50].float() / 127.5 - 1)
    assert batch.images.min() >= -1
    assert batch.strong is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_shuffles_a_pool(
    folder: Path, images: tuple[torch.Tensor, torch.Tensor], num_workers: int
) -> None:
    x, y = images
    dataset = FastSampler(pool=folder, batch_size=50, views="weak", seed=5).dataset()
    assert len(dataset) == 200
    seen = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(epoch)).tolist()
        loader = DataLoader(dataset, batch_size=32, sampler=order, num_workers=num_workers)
        views, labels = (torch.cat(column) for column in zip(*loader, strict=True))
        expected, _ = kernels.views(
            x[order],
            view_preset("weak"),
            seed=derive_seed(5, "sampler/views"),
            index=torch.tensor(order) + 200 * epoch,
        )
        assert torch.equal(views, expected)
        assert torch.equal(labels, y[order])
        seen.append(views)
    assert not torch.equal(*seen)
    pair = FastSampler(pool=folder, batch_size=50, views=("weak", "strong"), seed=5).dataset()[7]
    assert [t.shape for t in pair] == [(1, 8, 8), (1, 8, 8), ()]


def test_a_conditioned_pool_tells_the_soft_labels(recipe: Recipe, tmp_path: Path) -> None:
    soft = torch.rand(10, 6).softmax(1)
    table = ConditioningTable(soft, None)
    asked = Recipe(
        recipe.source, seed=1, table=lambda: table, targets={"num_target_images": len(soft)}
    )
    folder_pool(asked, 100, tmp_path / "c").take(torch.arange(100))
    for pool in (memory_pool(asked, 100), tmp_path / "c"):
        batch = next(iter(FastSampler(pool=pool, batch_size=50)))
        assert sorted(batch.labels.tolist()) == sorted(list(range(10)) * 5)
        assert batch.soft_labels is not None
        assert torch.equal(batch.soft_labels, soft[batch.labels])


def test_a_pool_travels_to_another_process_without_its_images(folder: Path) -> None:
    pool = open_pool(folder)
    pool.take(torch.arange(200))
    packed = pickle.dumps(pool)
    assert len(packed) < 5000
    again: Pool = pickle.loads(packed)
    assert torch.equal(again.take(torch.arange(9))[0], pool.take(torch.arange(9))[0])


def test_what_a_pool_has_no_use_for_is_refused(
    recipe: Recipe, folder: Path, tmp_path: Path
) -> None:
    generator = recipe.source.generator
    for options, message in (
        ({}, "either a generator or a pool"),
        ({"generator": generator, "pool": folder}, "either a generator or a pool"),
        ({"pool": folder, "truncation": 0.5}, "not to a pool"),
        ({"pool": folder, "reuse": 2, "views": "weak"}, "not to a pool"),
        ({"pool": folder, "batch_size": 101}, "at least 202"),
        ({"pool": open_pool(folder), "device": "meta"}, "the pool is on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            FastSampler(**{"batch_size": 10, **options})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds no pool"):
        FastSampler(pool=tmp_path / "nowhere", batch_size=10)
    sampler = FastSampler(pool=folder, batch_size=10)
    with pytest.raises(ValueError, match="serves a pool"):
        sampler.sample(labels=torch.arange(3))
    with pytest.raises(ValueError, match="pass a pool"):
        FastSampler(generator, batch_size=10).dataset()
