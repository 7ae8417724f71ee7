"""Rewritten generators equal their originals; what only looks like a pattern stays right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators.optimizer import PASSES, Optimized, optimize

X = torch.zeros(2, 4, 6, 6)


def matched(result: Optimized) -> dict[str, int]:
    return {row.name: row.matched for row in result.passes}


def frozen(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(*layers)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module.eval().requires_grad_(False)


class Trimmed(nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.conv, self.both = nn.Conv2d(4, 8, 3, padding=1), both

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y[:, 1:4].tanh() + (y.mean() if self.both else 0)


@pytest.mark.parametrize("skipped", [None, *PASSES])
def test_letters(skipped: str | None) -> None:
    generator = generators.load("letters")
    before = copy.deepcopy(generator.state_dict())
    keep = set(PASSES) - {skipped} if skipped else set()
    for skip in (keep, {skipped} if skipped else set()):  # the pass alone, and all but it
        result = optimize(generator, skip=skip)
        assert result.left is None
        latents, labels = torch.randn(5, generator.card.latent_dim), torch.arange(5)
        for num in (1, 5):
            expected = generator.generate(latents[:num], labels[:num], truncation=0.7)
            found = result.module.generate(latents[:num], labels[:num], truncation=0.7)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())


def test_letters_report_and_fullgraph() -> None:
    result = optimize(generators.load("letters"))
    assert result.passes[-1].multiply_adds[1] < 0.7 * result.passes[0].multiply_adds[0]
    assert matched(result)["phases"] == 2
    explained = torch._dynamo.explain(result.module.body)(
        *(torch.randn(3, s) for s in result.module.body.sizes[0] + result.module.body.sizes[1])
    )
    assert explained.graph_break_count == 0


@pytest.mark.parametrize(
    "style",
    [
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_bake(style: Any) -> None:
    result = optimize(frozen(style(nn.Conv2d(4, 6, 3)), nn.ReLU()), example=(X,))
    assert matched(result)["bake"] == 1


def test_trim() -> None:
    assert matched(optimize(Trimmed(False).eval(), example=(X,)))["trim"] == 1
    assert matched(optimize(Trimmed(True).eval(), example=(X,)))["trim"] == 0


NEAR = {
    "padding 0": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 5, 3)),
    "stride 2": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 5, 3, stride=2, padding=1)),
    "scale 3": (nn.Upsample(scale_factor=3), nn.Conv2d(4, 5, 3, padding=1)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 5, 3, padding=1)),
    "groups": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, groups=2)),
    "dilation": (nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_are_left_alone(name: str) -> None:
    result = optimize(frozen(*NEAR[name], nn.LeakyReLU(0.1)), example=(X,))
    assert result.left is None
    assert matched(result)["phases"] == 0


def test_upsampling_before_convolutions() -> None:
    three = optimize(
        frozen(nn.Upsample(scale_factor=2), nn.Conv2d(4, 5, 3, padding=1)), example=(X,)
    )
    one = optimize(frozen(nn.Upsample(scale_factor=2), nn.Conv2d(4, 5, 1)), example=(X,))
    assert (matched(three)["phases"], matched(one)["commute"]) == (1, 1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "up",
                "conv3",
                "conv1",
                "norm",
                "plain norm",
                "relu",
                "leaky",
                "silu",
                "tanh",
                "transposed",
            ]
        ),
        min_size=1,
        max_size=7,
    )
)
def test_any_stack_of_parts(names: list[str]) -> None:
    parts = {
        "up": lambda: nn.Upsample(scale_factor=2), "conv3": lambda: nn.Conv2d(4, 4, 3, padding=1), "conv1": lambda: nn.Conv2d(4, 4, 1),
        "norm": lambda: nn.BatchNorm2d(4), "plain norm": lambda: nn.BatchNorm2d(4, affine=False), "relu": nn.ReLU,
        "leaky": lambda: nn.LeakyReLU(0.2), "silu": nn.SiLU, "tanh": nn.Tanh, "transposed": lambda: nn.ConvTranspose2d(4, 4, 4, 2, 1),
    }  # fmt: skip
    names = [
        n for i, n in enumerate(names) if n not in ("up", "transposed") or names[:i].count(n) < 1
    ]
    result = optimize(frozen(*(parts[n]() for n in names)), example=(torch.zeros(2, 4, 3, 3),))
    assert result.left is None
    assert result.difference is not None
    assert result.difference <= 1e-5


def test_biggan_deep() -> None:
    biggan = pytest.importorskip("pytorch_pretrained_biggan")
    torch.manual_seed(0)
    model = biggan.BigGAN(biggan.BigGANConfig(channel_width=16, z_dim=16))
    for name, value in model.state_dict().items():
        if "running_means" in name or name.endswith(("bn.weight", "bn.bias", "gamma")):
            value.normal_(0, 0.3)
    for _ in range(3):  # the power iteration of spectral norm settles in training mode
        model(torch.randn(2, 16), torch.zeros(2, 1000), 0.37)
    model.eval().requires_grad_(False)
    z, y = torch.randn(3, 16), F.softmax(torch.randn(3, 1000), 1)
    result = optimize(model, example=(z, y, 0.37))
    assert (matched(result)["trim"], matched(result)["phases"]) == (1, 5)
    torch.testing.assert_close(result.module(z, y, 0.37), model(z, y, 0.37), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"optimised for 0\.37"):
        result.module(z, y, 0.5)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="eval"):
        optimize(nn.Conv2d(4, 4, 1).train(), example=(X,))
    with pytest.raises(UserError, match="accepted: bake"):
        optimize(nn.ReLU().eval(), example=(X,), skip=["nothing"])
    with pytest.raises(UserError, match="example"):
        optimize(nn.ReLU().eval())


def test_a_difference_is_refused() -> None:
    with pytest.raises(ValueError, match="differs"):
        optimize(generators.load("letters"), tolerance=0.0)


def test_an_untraceable_module_is_left() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert optimize(Branching().eval(), example=(X,)).left
