"""Every op at sizes where launches go wrong: one of everything, and more images than a grid's second axis allows.

The same checks run here with the C++ implementation and, marked `gpu`, with the Triton kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ptgm_fast import kernels
from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.consistency import METHODS
from ptgm_fast.kernels.views import view_parameters, view_preset

MANY = 70_000
NO_GPU = "there is no CUDA device here"


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU),
            ],
        ),
    ]
)
def on(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The device, and the implementation that is compared with the reference."""
    if request.param == "cpu" and (reason := dispatch.extension_missing()):
        pytest.skip(reason)
    return {"device": request.param, "impl": "cpu" if request.param == "cpu" else "triton"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found.cpu(), expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize(("num", "dim"), [(1, 1), (1, 4), (4, 1), (1, 5)])
def test_latents_of_one(on: dict[str, Any], num: int, dim: int) -> None:
    for truncation in (None, 0.5):
        options = {"seed": 3, "start": 2**40, "truncation": truncation}
        found = kernels.latents(num, dim, **options, **on).cpu()
        assert torch.equal(found, kernels.latents(num, dim, **options, impl="reference"))
    found = kernels.class_labels(num, dim, seed=3, **on).cpu()
    assert torch.equal(found, kernels.class_labels(num, dim, seed=3, impl="reference"))


@pytest.mark.parametrize(("num", "classes"), [(1, 1), (1, 2), (3, 1), (2, 4), (1, 8), (1, 16)])
def test_losses_of_one(on: dict[str, Any], num: int, classes: int) -> None:
    weak, strong = draw(num, classes), draw(num, classes, seed=1)
    labels = kernels.pseudo_label(weak.to(on["device"]), threshold=0.3, impl=on["impl"])
    expected = kernels.pseudo_label(weak, threshold=0.3, impl="reference")
    assert torch.equal(labels.labels.cpu(), expected.labels)
    assert torch.equal(labels.mask.cpu(), expected.mask)
    close(labels.confidence, expected.confidence)
    for method in METHODS:
        made = []
        for device, impl in ((on["device"], on["impl"]), ("cpu", "reference")):
            mine = strong.to(device, copy=True).requires_grad_()
            loss = kernels.consistency(
                weak.to(device), mine, method=method, threshold=0.3, impl=impl
            )
            loss.sum().backward()
            assert mine.grad is not None
            made.append((loss.detach(), mine.grad))
        for found, other in zip(*made, strict=True):
            close(found, other)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (8, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_one(on: dict[str, Any], height: int, width: int, channels: int) -> None:
    size = {"channels": channels, "height": height, "width": width, "seed": 5}
    spec, images = view_preset("strong"), draw(1, channels, height, width).clamp(-1, 1)
    found = view_parameters(spec, 1, **size, **on).packed
    close(found, view_parameters(spec, 1, **size, impl="reference").packed)
    made = kernels.views(images.to(on["device"]), spec, spec, seed=5, impl=on["impl"])
    expected = kernels.views(images, spec, spec, seed=5, impl="reference")
    for view, other in zip(made, expected, strict=True):
        close(view, other, atol=2e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 1, 1), (2, 3, 5, 1), (2, 3, 1, 5)], ids=str)
@pytest.mark.parametrize("form", ["plain", "upsample", "phases"])
def test_cond_norm_act_of_one(on: dict[str, Any], shape: tuple[int, ...], form: str) -> None:
    num, channels, height, width = shape
    x = image(num, 4 * channels, height + 1, width + 1) if form == "phases" else image(*shape)
    assert_norm(x, channels, on, {} if form == "plain" else {form: True})


def assert_norm(x: Tensor, channels: int, on: dict[str, Any], options: dict[str, Any]) -> None:
    affine = draw(2, len(x), channels, seed=1)
    given = [value.to(on["device"]) for value in (x, *affine)]
    found = kernels.cond_norm_act(*given, impl=on["impl"], **options)
    close(found, kernels.cond_norm_act(x, *affine, impl="reference", **options))


def test_more_images_than_a_grid_has_rows(on: dict[str, Any]) -> None:
    """CUDA's second and third grid axes are limited to 65,535."""
    images = draw(MANY, 1, 2, 3).clamp(-1, 1)
    spec = view_preset("weak")
    made = kernels.views(images.to(on["device"]), spec, None, seed=5, impl=on["impl"])[0]
    close(made, kernels.views(images, spec, None, seed=5, impl="reference")[0], atol=2e-4)
    assert_norm(image(MANY, 2, 2, 2), 2, on, {})
    assert_norm(image(MANY, 4, 2, 2), 1, on, {"phases": True})
    found = kernels.latents(MANY, 3, seed=3, **on).cpu()
    assert torch.equal(found, kernels.latents(MANY, 3, seed=3, impl="reference"))
    logits = draw(MANY, 2)
    labels = kernels.pseudo_label(logits.to(on["device"]), impl=on["impl"]).labels.cpu()
    assert torch.equal(labels, kernels.pseudo_label(logits, impl="reference").labels)
    loss = kernels.consistency(
        logits.to(on["device"]), logits.to(on["device"]).flip(0), threshold=0.0, impl=on["impl"]
    )
    close(loss, kernels.consistency(logits, logits.flip(0), threshold=0.0, impl="reference"))
