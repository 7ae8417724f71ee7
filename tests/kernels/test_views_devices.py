"""`views` in Triton and CUDA C++, without and with a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import isolated
from helpers.view_cases import FULL, assert_mostly_close, both_parameters, image_batch
from ptgm_fast.kernels.views import (
    apply_views,
    view_preset,
    views,
)

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = isolated.checks("interpreted/views.py", interpret=True)
COMPILED = isolated.checks("compiled/views.py", interpret=False)


@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


def nvcc(source: Path, library: Path, *options: str) -> ctypes.CDLL:
    """Compile CUDA C++ into a shared library and load it; skips where there is no nvcc."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc here")
    command = ["nvcc", "-std=c++17", "--cudart=static", "-Xcompiler", "-fPIC", "-shared", *options]
    include = ["-I", str(ROOT / "csrc")]
    done = subprocess.run(
        [*command, *include, str(source), "-o", str(library)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.slow
def test_the_cuda_source_s_pixels_equal_the_reference(tmp_path: Path) -> None:
    source = ROOT / "tests" / "kernels" / "cuda" / "views_on_host.cu"
    library = nvcc(source, tmp_path / "views_on_host.so", "-O1", "-arch=sm_80")
    for channels in (1, 3):
        images = image_batch(6, channels, 19, 24)
        weak, _ = both_parameters(6, channels, 19, 24, FULL)
        expected, _ = apply_views(images, weak, mean=0.4, std=0.3, impl="reference")
        actual = torch.empty_like(expected)
        sizes, strides = (torch.tensor(v) for v in (images.shape, images.stride()))
        means, stds = torch.full((channels,), 0.4), torch.full((channels,), 0.3)
        library.views_on_host(
            *(address(t) for t in (images, sizes, strides, weak.packed, actual, means, stds))
        )
        assert_mostly_close(actual, expected, atol=1e-4, share=2e-3)


@pytest.mark.slow
def test_the_cuda_library_says_that_there_is_no_driver(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    library = nvcc(ROOT / "csrc" / "views.cu", tmp_path / "views.so", "-O3", "-arch=sm_90a")
    library.ptgm_views_cuda.restype = ctypes.c_char_p
    error = library.ptgm_views_cuda(0, *[None] * 5, 0, *[None] * 5)
    assert b"driver" in error or b"no CUDA-capable device" in error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("source", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(channels: int, source: torch.dtype, dtype: torch.dtype) -> None:
    images = image_batch(16, channels, 32, 40, source)
    options = {"seed": 3, "start": 7, "dtype": dtype}
    actual = views(images.cuda(), FULL, view_preset("strong"), impl="triton", **options)  # type: ignore[arg-type]
    expected = views(images, FULL, view_preset("strong"), impl="reference", **options)  # type: ignore[arg-type]
    atol = {torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        assert_mostly_close(a.cpu(), e, atol=atol, share=2e-3)
