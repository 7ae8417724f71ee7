"""`FastSampler` in other programs: all kinds of workers, another default dtype, other image ranges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from ptgm_fast import FastSampler, generators, models
from ptgm_fast.engine.batch import Batch
from ptgm_fast.generators import Generator


@pytest.fixture(scope="module")
def letters() -> Generator:
    return generators.load("letters")


@pytest.fixture
def float64_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def numbers(batches: list[Batch]) -> list[int]:
    return [int(n) for batch in batches for n in batch.indices]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_start_method(letters: Generator, method: str) -> None:
    """Two epochs of persistent workers with two prefetched batches: every sample once, with the bits of one process."""
    with FastSampler(letters, batch_size=8, views="weak", overlap="never") as sampler:
        expected = {n: b for b in sampler.uniform(4) for n in [int(b.indices[0])]}
        loader = DataLoader(
            sampler.uniform(4),
            batch_size=None,
            num_workers=2,
            multiprocessing_context=method,
            persistent_workers=True,
        )
        for _ in range(2):
            found = list(loader)
            assert sorted(numbers(found)) == list(range(32))
            for batch in found:
                assert torch.equal(batch.images, expected[int(batch.indices[0])].images)
                assert torch.equal(batch.labels, expected[int(batch.indices[0])].labels)


def test_another_default_dtype_changes_no_bit(
    letters: Generator, request: pytest.FixtureRequest
) -> None:
    classifier = models.build("ptgm:cnn-small", num_classes=52, channels=1, image_size=28)
    targets = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)

    def served() -> list[torch.Tensor]:
        sampler = FastSampler(letters, batch_size=8, views=("weak", "strong"), overlap="never")
        asked = sampler.conditioned(classifier, targets, temperature=2.0)
        batches = [*sampler.uniform(2), *asked.batches(range(6))]
        tensors = [t for b in batches for t in (b.images, b.strong, b.labels)]
        return [t for t in tensors if t is not None] + [asked.table.soft_labels]

    before = served()
    request.getfixturevalue("float64_default")
    for a, b in zip(before, served(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (torch.full((2, 1, 28, 28), 255.0), "from 255 to 255"),
        (torch.full((2, 1, 28, 28), torch.nan), "from nan to nan"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.int64), "int64"),
        (torch.zeros(2, 28, 28, dtype=torch.uint8), r"shape \[2, 28, 28\]"),
    ],
)
def test_target_images_that_are_no_images(
    letters: Generator, images: torch.Tensor, given: str
) -> None:
    classifier = models.build("ptgm:cnn-small", num_classes=52, channels=1, image_size=28)
    sampler = FastSampler(letters, batch_size=2, overlap="never")
    other = models.build("ptgm:cnn-small", num_classes=26, channels=1, image_size=28)
    with pytest.raises(ValueError, match="for a generator of 52 classes"):
        sampler.conditioned(other, torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    with pytest.raises(ValueError, match=rf"{given}.*accepted: uint8 \(0 to 255\) or floats"):
        sampler.conditioned(classifier, images)
