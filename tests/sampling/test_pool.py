"""The pool's law: an image is a function of (generator, seed, label law, number), however and by whomever it is made."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.sampling import (
    BLOCK,
    FrozenGenerator,
    Pool,
    PoolOrder,
    Recipe,
    SourceModels,
    Synthesis,
    check_pool,
    conditioning_table,
    folder_pool,
    memory_pool,
    open_pool,
)
from ptgm_fast.sampling import pool as pool_module
from ptgm_fast.sampling.parts import Parts

COUNT = 300


@pytest.fixture(scope="module")
def source(pair: Path) -> SourceModels:
    return SourceModels(
        generators.load(str(pair)), generators.load_classifier(str(pair)), truncation=0.8
    )


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SHARD_IMAGES", 2 * BLOCK)


def all_of(pool: Pool, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return pool.take(torch.arange(count or len(pool)))


def made(recipe: Recipe, count: int, path: Path) -> Pool:
    all_of(folder_pool(recipe, count, path))
    return open_pool(path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def reference(source: SourceModels) -> tuple[torch.Tensor, torch.Tensor]:
    """Written out: uniform labels and images of the purpose "pool", 64 at a time, rounded."""
    synthesis = Synthesis(source, seed=7, purpose="pool")
    images, labels = [], []
    for first in range(0, COUNT, 64):
        y = synthesis.labels(64, first)
        x = synthesis.images(64, first, y, "class")
        images.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        labels.append(y)
    return torch.cat(images)[:COUNT], torch.cat(labels)[:COUNT]


def test_memory_and_folder_hold_the_generators_images(
    source: SourceModels, reference: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    recipe = Recipe(source, seed=7)
    for pool in (memory_pool(recipe, COUNT), made(recipe, COUNT, tmp_path / "p")):
        images, labels = all_of(pool)
        assert torch.equal(images, reference[0])
        assert torch.equal(labels, reference[1])
    with pytest.raises(IndexError, match="300"):
        pool.take(torch.tensor([COUNT]))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_batches_in_any_order_give_the_same_images(
    source: SourceModels, reference: tuple[torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    pool = memory_pool(Recipe(source, seed=7), COUNT)
    for _ in range(3):
        numbers = torch.tensor(
            data.draw(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=20))
        )
        images, labels = pool.take(numbers)
        assert torch.equal(images, reference[0][numbers])
        assert torch.equal(labels, reference[1][numbers])
    assert pool.made % BLOCK == 0
    assert pool.made <= 320


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(3)), count=st.integers(1, COUNT))
def test_a_folder_filled_in_any_order_has_the_same_bytes(
    source: SourceModels,
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    count: int,
) -> None:
    folder, recipe = tmp_path_factory.mktemp("pools"), Recipe(source, seed=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "SHARD_IMAGES", 2 * BLOCK)
        made(recipe, count, folder / "in turn")
        # Each shard by a maker of its own, who knows of no other.
        for shard in order:
            first = shard * 2 * BLOCK
            if first < count:
                folder_pool(recipe, count, folder / "apart").take(
                    torch.arange(first, min(first + 2 * BLOCK, count))
                )
    assert files(folder / "in turn") == files(folder / "apart")
    assert not (folder / "apart" / ".making").exists()


def test_a_larger_pool_begins_with_the_smaller_one(source: SourceModels, tmp_path: Path) -> None:
    recipe = Recipe(source, seed=7)
    small = made(recipe, 150, tmp_path / "grows")
    few = all_of(small)
    large = folder_pool(recipe, COUNT, tmp_path / "grows")
    assert all(torch.equal(a, b) for a, b in zip(all_of(large, 150), few, strict=True))
    # The full shard of the smaller pool is kept.
    assert large.made <= 64 * 1
    all_of(large)
    assert large.made == 192
    made(recipe, COUNT, tmp_path / "at once")
    assert files(tmp_path / "grows") == files(tmp_path / "at once")
    with pytest.raises(UserError, match="count: 300 there, 200 requested"):
        folder_pool(recipe, 200, tmp_path / "grows").begin()


def test_numpy_alone_reads_a_pool(source: SourceModels, tmp_path: Path) -> None:
    pool = made(Recipe(source, seed=7), COUNT, tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert manifest["count"] == COUNT
    assert manifest["truncation"] == 0.8
    names = sorted(n for part in manifest["parts"] for n in part["files"])
    assert names == sorted(p.name for p in (tmp_path / "p").glob("*.npy"))
    images = np.concatenate([np.load(tmp_path / "p" / n) for n in names if "images" in n])
    labels = np.concatenate([np.load(tmp_path / "p" / n) for n in names if "labels" in n])
    x, y = all_of(pool)
    assert np.array_equal(images, x.numpy())
    assert np.array_equal(labels, y.numpy())


def targets(seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def conditioned(source: SourceModels, images: torch.Tensor, temperature: float = 1.0) -> Recipe:
    return Recipe(
        source,
        seed=7,
        table=partial(conditioning_table, source, images, temperature=temperature),
        targets={"num_target_images": len(images), "temperature": temperature},
    )


def test_a_conditioned_pool_has_so_many_images_a_target(
    source: SourceModels, tmp_path: Path
) -> None:
    recipe = conditioned(source, targets())
    pool = made(recipe, 160, tmp_path / "c")
    images, labels = all_of(pool)
    assert labels.bincount().tolist() == [8] * 20
    for number in range(8):
        assert sorted(labels[20 * number : 20 * number + 20].tolist()) == list(range(20))
    table = conditioning_table(source, targets())
    assert pool.soft_labels is not None
    assert torch.equal(pool.soft_labels, table.soft_labels)
    synthesis = Synthesis(source, seed=7, purpose="pool")
    x = synthesis.images(64, 64, *table.conditions(labels[64:128]))
    assert torch.equal(images[64:128], ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    assert torch.equal(all_of(memory_pool(recipe, 160))[0], images)


@settings(max_examples=60, deadline=None)
@given(num=st.integers(2, 50), start=st.integers(0, 400), seed=st.integers(0, 5))
def test_the_order_never_shows_an_image_twice_in_a_batch(num: int, start: int, seed: int) -> None:
    order = PoolOrder(num, seed=seed, purpose="x")
    batch = order.indices(start, num // 2)
    assert len(set(batch.tolist())) == num // 2
    epoch = start // num
    assert sorted(order.indices(epoch * num, num).tolist()) == list(range(num))
    assert torch.equal(order.indices(0, num), torch.arange(num))
    # Any split of it is the same order.
    parts = [order.indices(start + i, 1) for i in range(num // 2)]
    assert torch.equal(torch.cat(parts), batch)


def test_epochs_differ(source: SourceModels) -> None:
    order = PoolOrder(100, seed=0, purpose="x")
    epochs = [order.indices(100 * e, 100).tolist() for e in range(4)]
    assert len({tuple(e) for e in epochs}) == 4
    with pytest.raises(ValueError, match="at least 2"):
        PoolOrder(1, seed=0, purpose="x")


def test_what_was_made_for_something_else_is_refused_with_both_values(
    source: SourceModels, pair: Path, tmp_path: Path
) -> None:
    recipe = Recipe(source, seed=7)
    pool = made(recipe, COUNT, tmp_path / "p")
    check_pool(pool, Recipe(source, seed=8), COUNT, "the pool")
    plain = SourceModels(generators.load(str(pair)), generators.load_classifier(str(pair)))
    stranger = FrozenGenerator(generators.load("letters"), truncation=0.8)
    for asked, message in (
        (Recipe(plain, seed=7), "truncation: 0.8 there, nothing requested"),
        (Recipe(stranger, seed=7), 'generator.sha256.generator.safetensors: "'),
        (Recipe(stranger, seed=7), "image_size: 8 there, 28 requested"),
        (
            conditioned(source, targets()),
            'labels.law: "uniform" there, "of target images" requested',
        ),
    ):
        with pytest.raises(UserError, match=message):
            check_pool(pool, asked, COUNT, "the pool")
    with pytest.raises(UserError, match="holds 300 images, 301 are needed"):
        check_pool(pool, recipe, 301, "the pool")
    # Whoever adds to a folder must make the same images.
    with pytest.raises(UserError, match="seed: 7 there, 8 requested"):
        folder_pool(Recipe(source, seed=8), COUNT, tmp_path / "p").begin()
    a = made(conditioned(source, targets()), COUNT, tmp_path / "c")
    with pytest.raises(UserError, match=r"labels.temperature: 1.0 there, 2.0 requested"):
        check_pool(a, conditioned(source, targets(), 2.0), COUNT, "the pool")


def test_a_missing_shard_is_named_and_made_again(source: SourceModels, tmp_path: Path) -> None:
    recipe = Recipe(source, seed=7)
    made(recipe, COUNT, tmp_path / "p")
    before = files(tmp_path / "p")
    (tmp_path / "p" / "images-00001.npy").unlink()
    with pytest.raises(UserError, match=r"images-00001.npy missing or of the wrong size"):
        open_pool(tmp_path / "p")
    again = folder_pool(recipe, COUNT, tmp_path / "p")
    all_of(again)
    assert again.made == 128
    assert files(tmp_path / "p") == before


def test_a_flipped_bit_is_found_on_demand(source: SourceModels, tmp_path: Path) -> None:
    made(Recipe(source, seed=7), COUNT, tmp_path / "p")
    file = tmp_path / "p" / "images-00002.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    pool = open_pool(tmp_path / "p")
    assert pool.store.damaged() == ["images-00002.npy"]  # type: ignore[attr-defined]


def test_other_bytes_of_another_machine_are_refused(source: SourceModels, tmp_path: Path) -> None:
    parts = Parts(tmp_path / "p", {"law": 1}, count=2, size=1)
    parts.begin()
    parts.write({"a": b"one"}, 0)
    parts.write({"a": b"one"}, 0)
    with pytest.raises(UserError, match="different bytes than when it was first made"):
        parts.write({"a": b"two"}, 0)
    assert (tmp_path / "p" / "a").read_bytes() == b"one"
    assert parts.missing() == [1]


@pytest.mark.parametrize("what", ["pickle", "shape", "short"])
def test_nothing_in_a_pool_is_executed(source: SourceModels, tmp_path: Path, what: str) -> None:
    made(Recipe(source, seed=7), COUNT, tmp_path / "p")
    file = tmp_path / "p" / "images-00000.npy"
    size = file.stat().st_size
    if what == "pickle":
        np.save(file, np.array([print] * 2, dtype=object), allow_pickle=True)
        data = file.read_bytes()
        file.write_bytes(data + bytes(size - len(data)))
    elif what == "shape":
        np.save(file, np.zeros((64, 1, 8, 16), np.uint8))
    else:
        file.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(UserError, match=r"images-00000.npy"):
        all_of(open_pool(tmp_path / "p"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "does not describe a folder"),
        ('{"count": 3, "format": "x", "version": 1}', "this version reads 'ptgm-fast pool'"),
        ('{"count": 3, "format": "ptgm-fast pool", "version": 1}', "not finished"),
        ('{"count": 3, "format": "ptgm-fast pool", "version": 1, "parts": []}', "damaged"),
        (
            '{"count": 3, "format": "ptgm-fast pool", "version": 1, "parts": [], "channels": 1, "image_size": 8, '
            '"part_size": 0, "labels": {"law": "uniform"}}',
            "damaged",
        ),
    ],
)
def test_a_strange_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_pool(tmp_path)
    with pytest.raises(UserError, match="holds no pool"):
        open_pool(tmp_path / "nowhere")


def test_a_full_disk_leaves_what_was_done(
    source: SourceModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(source, seed=7)
    made(recipe, COUNT, tmp_path / "whole")
    from ptgm_fast.sampling import parts

    write, calls = parts.write_atomically, []

    def failing(path: Path, data: bytes, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        write(path, data, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "write_atomically", failing)
    with pytest.raises(OSError, match="No space"):
        all_of(folder_pool(recipe, COUNT, tmp_path / "p"))
    with pytest.raises(UserError, match="not finished"):
        open_pool(tmp_path / "p")
    rest = folder_pool(recipe, COUNT, tmp_path / "p")
    all_of(rest)
    assert rest.made == 192  # the first shard was there
    assert files(tmp_path / "p") == files(tmp_path / "whole")
