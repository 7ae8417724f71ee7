"""Pseudo conditional sampling: soft labels, mixed embeddings, and the images that both ask for."""

import pytest
import torch
from torch import Tensor

from ptgm_fast import generators
from ptgm_fast.generators import Generator
from ptgm_fast.sampling import SourceModels, conditioning_table


@pytest.fixture(scope="module")
def source() -> SourceModels:
    return SourceModels(generators.load("letters"), generators.load_classifier("letters"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (7, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, 3), (4.0, 1), (1.0, 99)])
def test_both_forms_ask_for_the_same_images(
    source: SourceModels, images: Tensor, temperature: float, top_k: int | None
) -> None:
    table = conditioning_table(source, images, temperature=temperature, top_k=top_k, batch_size=3)
    assert len(table) == 7
    logits = source.classify(images) / temperature
    if top_k is not None and top_k < 52:
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.topk(top_k).indices, 1)
        logits[~kept] = float("-inf")
    torch.testing.assert_close(table.soft_labels, logits.softmax(1), atol=1e-6, rtol=1e-5)
    rows = torch.tensor([6, 0, 0])
    condition, kind = table.conditions(rows)
    assert kind == "embedding"
    latents = source.latents(3, seed=1, start=0)
    torch.testing.assert_close(
        source.generate(latents, condition, kind),
        source.generate(latents, table.soft_labels[rows], "soft-label"),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_generator_without_a_class_table_is_given_soft_labels(images: Tensor) -> None:
    letters = generators.load("letters")

    class OneHot(Generator):
        card = letters.card

        def generate(self, latents: Tensor, condition: Tensor, **_: object) -> Tensor:
            raise NotImplementedError

    table = conditioning_table(
        SourceModels(OneHot(), generators.load_classifier("letters")), images
    )
    condition, kind = table.conditions(torch.tensor([2]))
    assert kind == "soft-label"
    torch.testing.assert_close(condition.sum(1), torch.ones(1))


@pytest.mark.parametrize(
    ("options", "message"), [({"temperature": 0.0}, "temperature"), ({"top_k": 0}, "top_k")]
)
def test_values_out_of_range(
    source: SourceModels, images: Tensor, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        conditioning_table(source, images, **options)  # type: ignore[arg-type]
