"""Images, parameters and comparisons shared by the tests of `views`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ptgm_fast.kernels.views import ViewParameters, ViewSpec, view_parameters, view_preset

# Every operation at once.
FULL = dataclasses.replace(
    view_preset("rand-augment"), num_ops=0, hue=0.2, posterize=3, solarize=0.4
)


def image_batch(
    num: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    torch.manual_seed(num + 7 * channels + 11 * height + 13 * width)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (num, channels, height, width), dtype=dtype)
    return (torch.rand(num, channels, height, width) * 2 - 1).to(dtype)


def both_parameters(
    num: int, channels: int, height: int, width: int, spec: ViewSpec
) -> list[ViewParameters]:
    size = {"channels": channels, "height": height, "width": width}
    return [
        view_parameters(spec, num, seed=5, view=view, impl="reference", **size)
        for view in ("weak", "strong")
    ]  # type: ignore[arg-type]


def assert_mostly_close(actual: Tensor, expected: Tensor, *, atol: float, share: float) -> None:
    """All but a share of the values agree: posterize and solarize turn a rounding error at a threshold into a jump."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).abs()
    far = (error > atol).double().mean().item() if error.numel() else 0.0
    assert far <= share, (
        f"{far:.2%} of the values differ by more than {atol}, at most {error.max():.3g}"
    )


def assert_one_graph(step: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """The step compiles whole, and gives the same values and gradient as it does eagerly."""
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    results, grads = [], []
    for function in (step, compiled):
        leaf = images.clone().requires_grad_()
        results.append(function(leaf))
        results[-1].sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0] is not None
    assert grads[0].abs().max() > 0
