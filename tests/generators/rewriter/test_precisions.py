"""The rewritten letters generator in each precision that runs use, against float64: on a CPU, and on a GPU (marked `gpu`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ptgm_fast import generators
from ptgm_fast.generators import Generator
from ptgm_fast.models.precision import in_precision

NO_GPU = "there is no CUDA device here"
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_a_gpu)], scope="module")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def letters(device: torch.device) -> Generator:
    return generators.load("letters").to(device)


@pytest.fixture(scope="module")
def rewritten(letters: Generator) -> Generator:
    """Rewritten as by default: verified to 1e-5 under the current rounding, else the original is kept."""
    done = generators.optimize(letters)
    assert done.left is None
    assert done.difference is not None
    assert done.difference <= 1e-5
    assert isinstance(done.module, Generator)
    return done.module


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 for convolutions, as cuDNN does by default, and for products."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


@pytest.fixture
def no_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def exact(letters: Generator, inputs: tuple[Tensor, ...]) -> Tensor:
    """The images in float64, from a separate network."""
    own = generators.load("letters").to(inputs[0].device).double()
    return own(*[value.double() for value in inputs])


def inputs_of(letters: Generator) -> tuple[Tensor, ...]:
    return letters.example(None, num=32, seed=1)


@torch.no_grad()
@pytest.mark.usefixtures("no_tf32")
def test_float32_is_within_1e_5(letters: Generator, rewritten: Generator) -> None:
    inputs = inputs_of(letters)
    torch.testing.assert_close(rewritten(*inputs), letters(*inputs), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rewritten(*inputs).double(), exact(letters, inputs), atol=1e-5, rtol=0
    )


@torch.no_grad()
@pytest.mark.usefixtures("tf32")
def test_tf32_is_within_2e_3(letters: Generator, rewritten: Generator) -> None:
    inputs = inputs_of(letters)
    torch.testing.assert_close(
        rewritten(*inputs).double(), exact(letters, inputs), atol=2e-3, rtol=0
    )


@torch.no_grad()
@pytest.mark.usefixtures("tf32")
def test_bfloat16_is_within_a_hundredth_of_the_norm(
    letters: Generator, rewritten: Generator, device: torch.device
) -> None:
    inputs = inputs_of(letters)
    made = in_precision(rewritten, device=device, precision="bfloat16")(*inputs).double()
    expected = exact(letters, inputs)
    assert (made - expected).norm() <= 1e-2 * expected.norm()
    assert not torch.equal(made, rewritten(*inputs).double())
