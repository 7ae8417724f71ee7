"""The conditional-batch-norm generator: sizes, conditions, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ptgm_fast.generators import (
    ConditionalBatchNorm2d,
    ConditionalBatchNormGenerator,
    GeneratorCard,
)


def test_conditional_batch_norm_is_its_formula() -> None:
    torch.manual_seed(0)
    module = ConditionalBatchNorm2d(3, 4)
    torch.nn.init.normal_(module.scale_shift.weight)
    torch.nn.init.normal_(module.scale_shift.bias)
    x, condition = torch.randn(6, 3, 5, 5) * 2 + 1, torch.randn(6, 4)
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), keepdim=True, unbiased=False)
    both = condition @ module.scale_shift.weight.T + module.scale_shift.bias
    scale, shift = both[:, :3, None, None], both[:, 3:, None, None]
    expected = (1 + scale) * (x - mean) / (variance + 1e-5).sqrt() + shift
    torch.testing.assert_close(module(x, condition), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("image_size", "channels", "widths"),
    [(28, 1, (6, 5, 4)), (32, 3, (6, 5, 4, 3)), (12, 3, (4, 4)), (4, 1, (4, 4, 4))],
    ids=["letters", "three-blocks-color", "one-block", "four-pixels"],
)
def test_sizes(
    make_card: Callable[..., GeneratorCard], image_size: int, channels: int, widths: tuple[int, ...]
) -> None:
    card = make_card(image_size=image_size, channels=channels, widths=widths)
    generator = ConditionalBatchNormGenerator(card).eval()
    images = generator.generate(torch.randn(2, 3), torch.tensor([0, 4]))
    assert images.shape == (2, channels, image_size, image_size)
    assert images.abs().max() <= 1
    assert generator.generate(torch.randn(0, 3), torch.zeros(0, dtype=torch.int64)).shape[0] == 0


def test_image_size_must_fit_the_blocks(make_card: Callable[..., GeneratorCard]) -> None:
    with pytest.raises(ValueError, match="image_size 10 is not a multiple of 4"):
        ConditionalBatchNormGenerator(make_card(image_size=10))


def test_class_one_hot_and_embedding_agree(tiny: ConditionalBatchNormGenerator) -> None:
    latents, labels = torch.randn(5, 3), torch.arange(5)
    by_class = tiny.generate(latents, labels)
    torch.testing.assert_close(tiny.generate(latents, F.one_hot(labels, 5).float()), by_class)
    torch.testing.assert_close(tiny.generate(latents, tiny.embedding.weight[labels]), by_class)


def test_soft_label_is_mixed_in_embedding_space(tiny: ConditionalBatchNormGenerator) -> None:
    latents = torch.randn(4, 3)
    soft = torch.softmax(torch.randn(4, 5), 1)
    mixed = soft @ tiny.embedding.weight
    images = tiny.generate(latents, soft)
    torch.testing.assert_close(images, tiny.generate(latents, mixed))
    hardened = tiny.generate(latents, soft.argmax(1))
    assert (images - hardened).abs().max() > 1e-3


def test_equal_sizes_are_ambiguous(make_card: Callable[..., GeneratorCard]) -> None:
    generator = ConditionalBatchNormGenerator(make_card(embedding_dim=5)).eval()
    latents, condition = torch.randn(2, 3), torch.eye(5)[:2]
    with pytest.raises(ValueError, match="may be a soft label or an embedding"):
        generator.generate(latents, condition)
    by_label = generator.generate(latents, condition, kind="soft-label")
    torch.testing.assert_close(by_label, generator.generate(latents, torch.tensor([0, 1])))
    assert (by_label - generator.generate(latents, condition, kind="embedding")).abs().max() > 1e-4


def test_truncation_scales_latents(tiny: ConditionalBatchNormGenerator) -> None:
    latents, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(
        tiny.generate(latents, labels, truncation=0.5), tiny.generate(latents * 0.5, labels)
    )
    for wrong in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=r"truncation must lie in \(0, 1\]"):
            tiny.generate(latents, labels, truncation=wrong)


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (4,)], ids=["width", "count", "rank"])
def test_latents_of_another_shape(
    tiny: ConditionalBatchNormGenerator, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected \[4, 3\], one row per condition"):
        tiny.generate(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))


def test_gradients_reach_latents_and_soft_labels(tiny: ConditionalBatchNormGenerator) -> None:
    latents = torch.randn(2, 3, requires_grad=True)
    soft = torch.full((2, 5), 0.2, requires_grad=True)
    tiny.generate(latents, soft).square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0
    assert soft.grad is not None
    assert soft.grad.abs().max() > 0
