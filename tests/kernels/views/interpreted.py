"""`views` on Triton's interpreter: numerics against the reference, and its memory accesses."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from helpers import memory_guard
from ptgm_fast.kernels.views import (
    PRESETS,
    ViewParameters,
    ViewSpec,
    apply_views,
    view_parameters,
    views,
)

FULL = dataclasses.replace(PRESETS["rand-augment"], num_ops=0, hue=0.2, posterize=3, solarize=0.4)
SMOOTH = dataclasses.replace(FULL, posterize=8, solarize=0.0)


def image_batch(num: int, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(num + channels + height + width)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (num, channels, height, width), dtype=dtype)
    return (torch.rand(num, channels, height, width) * 2 - 1).to(dtype)


def both(num: int, channels: int, height: int, width: int, spec: ViewSpec) -> list[ViewParameters]:
    size = {"channels": channels, "height": height, "width": width}
    return [
        view_parameters(spec, num, seed=5, view=view, impl="reference", **size)  # type: ignore[arg-type]
        for view in ("weak", "strong")
    ]


def check_every_dtype_size_and_layout() -> None:
    cases = [
        (1, 1, 7, 9, torch.uint8, torch.float32),
        (2, 3, 20, 21, torch.float32, torch.float32),
        (2, 3, 16, 16, torch.bfloat16, torch.bfloat16),
        (1, 1, 28, 28, torch.float16, torch.float16),
        (1, 3, 1, 1, torch.float32, torch.bfloat16),
    ]
    for num, channels, height, width, source, dtype in cases:
        for layout in (torch.contiguous_format, torch.channels_last):
            images = image_batch(num, channels, height, width, source).contiguous(
                memory_format=layout
            )
            weak, strong = both(num, channels, height, width, SMOOTH)
            actual = apply_views(
                images, weak, strong, mean=0.4, std=0.3, dtype=dtype, impl="triton"
            )
            expected = apply_views(
                images, weak, strong, mean=0.4, std=0.3, dtype=dtype, impl="reference"
            )
            atol = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
            for a, e in zip(actual, expected, strict=True):
                assert a is not None
                assert e is not None
                assert a.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(a, e, atol=atol, rtol=0)


def check_other_sizes_and_channels() -> None:
    cases = [
        (2, 3, (5, 6), (11, 6), 3, torch.uint8, torch.bfloat16),
        (1, 1, (7, 9), (10, 13), 1, torch.float32, torch.float32),
        (1, 1, (1, 1), (3, 2), 3, torch.float32, torch.float32),
        (1, 3, (1, 4), (1, 9), 1, torch.bfloat16, torch.float32),
        (1, 1, (9, 8), (4, 17), 1, torch.uint8, torch.float32),
        (1, 1, (9, 8), (1, 1), 3, torch.float32, torch.float32),
        (0, 3, (5, 5), (8, 7), 3, torch.float32, torch.float32),
    ]
    for num, channels, side, size, made, source, dtype in cases:
        images = image_batch(num, channels, *side, source)
        options = {"mean": 0.4, "std": 0.3, "dtype": dtype, "size": size, "channels": made}
        weak, strong = both(num, made, *size, SMOOTH)
        with memory_guard.guard() as launches:
            actual = apply_views(images, weak, strong, impl="triton", **options)  # type: ignore[arg-type]
        expected = apply_views(images, weak, strong, impl="reference", **options)  # type: ignore[arg-type]
        for a, e in zip(actual, expected, strict=True):
            assert a is not None
            assert e is not None
            assert a.shape == (num, made, *size)
            atol = 2e-2 if dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(a, e, atol=atol, rtol=0)
        for launch in launches:
            assert (launch["weak_out"].writes == 1).all()
            assert (launch["strong_out"].writes == 1).all()


def check_pointwise_steps() -> None:
    images = image_batch(2, 3, 24, 24, torch.float32)
    weak, strong = both(2, 3, 24, 24, FULL)
    actual = apply_views(images, weak, strong, impl="triton")
    expected = apply_views(images, weak, strong, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert a is not None
        assert e is not None
        # At a threshold, a rounding error becomes a jump: a few values may differ.
        assert ((a - e).abs() > 1e-4).float().mean() < 5e-3


def check_per_channel_statistics() -> None:
    images = image_batch(1, 3, 6, 5, torch.uint8)
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "seed": 0}
    actual, none = views(images, ViewSpec(), impl="triton", **options)  # type: ignore[arg-type]
    expected, _ = views(images, ViewSpec(), impl="reference", **options)  # type: ignore[arg-type]
    assert none is None
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def check_empty_batch() -> None:
    weak, strong = views(torch.empty(0, 3, 8, 8), FULL, FULL, seed=1, impl="triton")
    assert strong is not None
    assert weak.shape == strong.shape == (0, 3, 8, 8)


def check_nan_is_not_hidden() -> None:
    for channels in (1, 3):
        images = torch.full((1, channels, 5, 5), float("nan"))
        weak, _ = views(images, dataclasses.replace(FULL, cutout=0.0), seed=0, impl="triton")
        assert weak[0, :, 2, 2].isnan().all()


def check_senseless_geometry_stays_inside_the_image() -> None:
    images = image_batch(1, 3, 6, 7, torch.float32)
    for bad in (float("nan"), float("inf"), -1e30):
        for column in range(6):
            parameters = ViewParameters.compose(1, 3)
            parameters.packed[:, column] = bad
            for size in (None, (7, 13)):
                with memory_guard.guard():
                    weak, _ = apply_views(images, parameters, size=size, impl="triton")
                assert ((weak >= -1 - 1e-6) & (weak <= 1 + 1e-6)).all()


def check_each_output_is_written_once_and_the_image_read_once_a_tap() -> None:
    images = image_batch(2, 3, 12, 10, torch.float32)
    same = ViewParameters.compose(2, 3)
    with memory_guard.guard() as launches:
        apply_views(images, same, same, impl="triton")
    (launch,) = launches
    assert (launch["weak_out"].writes == 1).all()
    assert (launch["strong_out"].writes == 1).all()
    assert (launch["weak_out"].reads == 0).all()
    # Each view reads the four neighbors of every position. For the identity, each pixel is one of four, fewer at the
    # upper and left border, whose pixels have fewer positions before them.
    reads = launch["images"].reads
    assert (reads[:, :, 1:, 1:] == 8).all()
    assert (reads[:, :, 0, 1:] == 4).all()
    assert (reads[:, :, 0, 0] == 2).all()
    assert (launch["images"].writes == 0).all()


def check_drawn_parameters() -> None:
    for channels in (1, 3):
        for spec in (*PRESETS.values(), FULL):
            size = {"channels": channels, "height": 28, "width": 45, "seed": 9, "start": 11}
            with memory_guard.guard() as launches:
                actual = view_parameters(spec, 70, impl="triton", **size).packed  # type: ignore[arg-type]
            expected = view_parameters(spec, 70, impl="reference", **size).packed  # type: ignore[arg-type]
            # Discrete decisions (bits, cutout, which operations) must not differ at all.
            for column in (18, 20, 21, 22, 23):
                assert torch.equal(actual[:, column], expected[:, column])
            torch.testing.assert_close(actual, expected, atol=3e-6, rtol=2e-6)
            assert (launches[-1]["out_ptr"].writes == 1).all()
