"""Rewritten generators equal their originals; look-alikes of a pattern stay correct."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.generators.rewriter import PASSES, Optimized, optimize

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
    # The pass alone, and all but it; or all.
    for skip in (set(PASSES) - {skipped}, {skipped}) if skipped else (set(),):
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
    inputs = torch.randn(3, 16), torch.arange(3)
    compiled = torch.compile(result.module.generate, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), result.module.generate(*inputs))


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
    # Every kind of layer of the published ones: with and without upsampling, narrower and as wide, attention.
    layers = [(False, 16, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (True, 2, 1)]
    model = biggan.BigGAN(biggan.BigGANConfig(32, 8, 8, 8, 10, layers, 4, 1e-4, 51))
    for name, value in model.state_dict().items():
        if "running_means" in name or name.endswith(("bn.weight", "bn.bias", "gamma")):
            value.normal_(0, 0.3)
    for _ in range(3):  # the power iteration of spectral norm settles in training mode
        model(torch.randn(2, 8), torch.zeros(2, 10), 0.37)
    model.eval().requires_grad_(False)
    z, y = torch.randn(3, 8), F.softmax(torch.randn(3, 10), 1)
    result = optimize(model, example=(z, y, 0.37))
    assert [matched(result)[name] for name in ("trim", "phases", "attention")] == [1, 3, 1]
    torch.testing.assert_close(result.module(z, y, 0.37), model(z, y, 0.37), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"optimized for 0\.37"):
        result.module(z, y, 0.5)


@pytest.mark.parametrize("bias", [True, False])
def test_one_channel(bias: bool) -> None:
    one = optimize(frozen(nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1, bias=bias)), example=(X,))
    two = optimize(frozen(nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)), example=(X,))
    valid = optimize(frozen(nn.ReLU(), nn.Conv2d(4, 1, 3)), example=(X,))
    assert [matched(r)["narrow"] for r in (one, two, valid)] == [1, 0, 0]


class Attention(nn.Module):
    """softmax(q k) v of one input, with the order and sharing given by the flags."""

    def __init__(self, form: str, shared: bool) -> None:
        super().__init__()
        self.form, self.shared = form, shared

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.bmm(x, x.transpose(1, 2)).softmax(-1)
        if self.form == "rows":
            out = weights @ x
        elif self.form == "permute":
            out = torch.bmm(x.transpose(1, 2), weights.permute(0, 2, 1)).transpose(1, 2)
        else:
            out = (x.transpose(1, 2) @ weights.transpose(-1, -2)).transpose(1, 2)
        return out + weights.sum(2, keepdim=True) if self.shared else out


@pytest.mark.parametrize("form", ["rows", "permute", "transpose"])
@pytest.mark.parametrize(
    ("rows", "shared", "count"), [(300, False, 1), (300, True, 0), (128, False, 0)]
)
def test_attention(form: str, rows: int, shared: bool, count: int) -> None:
    module = Attention(form, shared).eval()
    result = optimize(module, example=(torch.zeros(2, rows, 5),))
    assert matched(result)["attention"] == count


def test_a_class_table_is_kept_and_the_rest_is_not(tmp_path: Path) -> None:
    generator = generators.load("letters")
    fast = optimize(generator).module
    assert isinstance(fast, generators.Generator)
    assert [name for name, _ in fast.named_children()] == ["embedding", "body"]
    assert torch.equal(fast.class_table, generator.class_table)
    assert fast.card == generator.card
    copied = copy.deepcopy(fast)
    inputs = torch.randn(2, 16), torch.tensor([1, 2])
    assert torch.equal(copied.generate(*inputs), fast.generate(*inputs))


def test_own_modules_by_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors, indices and mixtures within the network: all are traced in one piece."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    for name in ("DCGAN", "Indexed?soft=sample-class", "Indexed?soft=mix-embedding"):
        original = generators.load(f"module:own_dcgan:{name}")
        result = optimize(original)
        assert result.left is None
        latents = torch.randn(4, original.card.latent_dim)
        soft = torch.softmax(torch.randn(4, original.card.num_classes), 1)
        expected = original.generate(latents, soft)
        torch.testing.assert_close(result.module.generate(latents, soft), expected)


class Branching(nn.Module):
    """Cannot be traced as a whole: the branch depends on data. `up` can; `twice` is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1))
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.up(x)))
        return y if y.sum() > 0 else -y


def test_what_can_be_traced_of_an_untraceable_module(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match=r"cannot be traced .*; rewritten instead: up\."):
        result = optimize(Branching().eval(), example=(X,))
    assert result.left
    assert capfd.readouterr() == ("", ""), "torch prints the graph"
    assert result.parts == ("up",)
    assert matched(result)["phases"] == 1
    assert result.difference is not None
    x = torch.randn(3, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(result.module(x), Branching().eval()(x), atol=1e-5, rtol=1e-5)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="eval"):
        optimize(nn.Conv2d(4, 4, 1).train(), example=(X,))
    with pytest.raises(UserError, match="accepted: bake"):
        optimize(nn.ReLU().eval(), example=(X,), skip=["nothing"])
    with pytest.raises(UserError, match="example"):
        optimize(nn.ReLU().eval())


class Wrong(nn.Module):
    """Computes another value per channel in the graph than outside it."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (0.001 if torch.compiler.is_exporting() else 0)


def test_a_rewrite_that_differs_is_not_used() -> None:
    with pytest.warns(UserWarning, match=r"differs .* 0\.000\d.*tolerance 1e-05.*--no-optimize"):
        result = optimize(Wrong().eval(), example=(X,))
    assert result.left
    assert torch.equal(result.module(X), X)


class IllConditioned(nn.Module):
    """Large numbers cancel: in float32 the original itself is far from float64, and its rewrite equally far."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.conv = nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.up(x + 3000)) - self.conv(self.up(torch.full_like(x, 3000)))


def test_both_are_judged_against_float64() -> None:
    """A rewrite that is no worse than its original is used, even if the two differ by more than the tolerance."""
    result = optimize(IllConditioned().eval().requires_grad_(False), example=(X,))
    assert matched(result)["phases"] == 2
    assert result.difference is not None
    assert result.difference > 1e-5
    assert result.errors is not None
    original, rewrite = result.errors
    assert 1e-5 < rewrite <= 2 * original


class InPlace(nn.Module):
    """Writes to its latents, and to the class vector."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return z.add_(1) + y.mul_(2)


def test_a_module_that_writes_to_its_inputs() -> None:
    z, y = torch.zeros(2, 3), torch.ones(2, 3)
    result = optimize(InPlace().eval(), example=(z, y))
    assert result.difference == 0
    assert torch.equal(z, torch.zeros(2, 3))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Counting(nn.Module):
    """Draws its own random numbers, with a new seed for each call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(self.calls))


@pytest.mark.parametrize("kind", [Noisy, Counting])
def test_noise_cannot_be_compared(kind: type[nn.Module]) -> None:
    notices: list[str] = []
    before = torch.get_rng_state()
    result = optimize(kind().eval(), example=(X,), on_notice=notices.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(result.module, kind)
    (notice,) = notices
    assert "draws random numbers in forward" in notice
    assert "source.optimize=false" in notice
    assert "\n" not in notice


def test_an_untraceable_module_is_left() -> None:
    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.warns(UserWarning, match="cannot be traced .* used as it is"):
        result = optimize(Alone().eval(), example=(X,))
    assert result.left
    assert result.parts == ()
    assert torch.equal(result.module(X + 1), X + 1)
