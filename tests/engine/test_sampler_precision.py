"""`FastSampler` runs its frozen networks in the requested precision and serves float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ptgm_fast import FastSampler, generators
from ptgm_fast.generators import Generator
from ptgm_fast.sampling import BLOCK, FrozenGenerator, Recipe, memory_pool

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from fake_cuda import GPU, fake_gpu


@pytest.fixture
def generator(pair: Path) -> Generator:
    return generators.load(str(pair))


def served(generator: Generator, **options: Any) -> Tensor:
    """The first images, regardless of their batches."""
    with FastSampler(generator, seed=2, **{"batch_size": 40, **options}) as sampler:
        count = -(-80 // options.get("batch_size", 40))
        return torch.cat([batch.images for batch in sampler.uniform(count)])[:80]


@pytest.mark.parametrize("views", [None, "weak"])
def test_bfloat16_is_autocast_of_the_generator_alone(
    generator: Generator, views: str | None
) -> None:
    exact, rounded = (served(generator, precision=p, views=views) for p in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(served(generator, precision="auto", views=views), exact)
    assert torch.equal(served(generator, precision="bfloat16", views=views, batch_size=7), rounded)
    # 8 bits of mantissa: visible, and small.
    assert 1e-4 < (rounded - exact).abs().max() < 0.2
    if views is None:
        sampler = FastSampler(generator, batch_size=BLOCK, seed=2)
        synthesis = sampler._synthesis("uniform")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            images = synthesis.images(BLOCK, 0, synthesis.labels(BLOCK, 0), "class")
        assert torch.equal(rounded[:BLOCK], images.float())


def test_the_classifier_computes_in_it_too(generator: Generator, pair: Path) -> None:
    classifier = generators.load_classifier(str(pair))
    targets = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    tables = {}
    for precision in ("float32", "bfloat16"):
        sampler = FastSampler(generator, batch_size=4, precision=precision)
        tables[precision] = sampler.conditioned(classifier, targets).table.soft_labels
    error = (tables["bfloat16"] - tables["float32"]).abs().max()
    assert tables["bfloat16"].dtype == torch.float32
    assert 0 < error < 0.05


def test_mistakes(generator: Generator) -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        FastSampler(generator, batch_size=4, precision="half")
    with pytest.raises(ValueError, match="TF32 needs a CUDA GPU; the generator is on cpu"):
        FastSampler(generator, batch_size=4, precision="tf32")
    pool = memory_pool(Recipe(FrozenGenerator(generator), seed=1), 64)
    with pytest.raises(ValueError, match="precision, reuse and capture apply to a generator"):
        FastSampler(pool=pool, batch_size=4, precision="bfloat16")


class Convolutions(TorchDispatchMode):
    """Records the dtype of convolutions, and whether matrix products may be rounded at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.dtype, bool]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            assert args[0].device == args[1].device == GPU
            self.seen.add((args[0].dtype, torch.backends.cuda.matmul.allow_tf32))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "computed"),
    [
        ("float32", (torch.float32, False)),
        ("tf32", (torch.float32, True)),
        ("bfloat16", (torch.bfloat16, False)),
        ("auto", (torch.bfloat16, False)),
    ],
)
def test_on_a_gpu(
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    computed: tuple[torch.dtype, bool],
) -> None:
    with fake_gpu(monkeypatch):
        generator.to(GPU)
        sampler = FastSampler(generator, batch_size=8, overlap="never", precision=precision)
        with Convolutions() as convolutions:
            (batch,) = sampler.uniform(1)
        assert batch.images.device == GPU
        assert batch.images.dtype == torch.float32
    assert convolutions.seen == {computed}
