"""`views` in Triton, without and with a GPU."""

from __future__ import annotations

import pytest
import torch

from helpers import isolated
from helpers.view_cases import FULL, assert_mostly_close, image_batch
from ptgm_fast.kernels.views import (
    view_preset,
    views,
)

INTERPRETED = isolated.checks("views/interpreted.py", interpret=True)
COMPILED = isolated.checks("views/compiled.py", interpret=False)


@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


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
