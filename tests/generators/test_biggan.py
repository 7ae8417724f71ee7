"""BigGAN in BigGAN-PyTorch's layout against plain functions over the state dict, written from the paper."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ptgm_fast import generators
from ptgm_fast.errors import UserError

CLASSES, EMBEDDING, CHUNK, EPS = 6, 5, 4, 1e-5
WIDTHS = [(16, 16, False), (16, 16, True), (16, 8, False)]


def made(chunk: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {"shared.weight": torch.randn(CLASSES, EMBEDDING)}

    def normed(name: str, *shape: int, bias: bool) -> None:
        state[f"{name}.weight"] = torch.randn(shape)
        state[f"{name}.u0"], state[f"{name}.sv0"] = torch.randn(1, shape[0]), torch.ones(1)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0]) * 0.1

    def statistics(name: str, width: int) -> None:
        state[f"{name}.stored_mean"] = torch.randn(width) * 0.1
        state[f"{name}.stored_var"] = torch.rand(width) + 0.5

    normed("linear", 16 * 16, CHUNK, bias=True)
    for index, (inputs, outputs, attention) in enumerate(WIDTHS):
        name = f"blocks.{index}.0"
        normed(f"{name}.conv1", outputs, inputs, 3, 3, bias=True)
        normed(f"{name}.conv2", outputs, outputs, 3, 3, bias=True)
        normed(f"{name}.conv_sc", outputs, inputs, 1, 1, bias=True)
        for norm, width in (("bn1", inputs), ("bn2", outputs)):
            statistics(f"{name}.{norm}", width)
            normed(f"{name}.{norm}.gain", width, EMBEDDING + chunk, bias=False)
            normed(f"{name}.{norm}.bias", width, EMBEDDING + chunk, bias=False)
        if attention:
            half, eighth = outputs // 2, outputs // 8
            for part, shape in zip(
                ["theta", "phi", "g", "o"],
                [(eighth, outputs)] * 2 + [(half, outputs), (outputs, half)],
                strict=True,
            ):
                normed(f"blocks.{index}.1.{part}", *shape, 1, 1, bias=False)
            state[f"blocks.{index}.1.gamma"] = torch.tensor(0.8)
    statistics("output_layer.0", 8)
    state["output_layer.0.gain"], state["output_layer.0.bias"] = torch.ones(8), torch.zeros(8)
    normed("output_layer.2", 3, 8, 3, 3, bias=True)
    return state


def plain(s: dict[str, Tensor], z: Tensor, e: Tensor, chunk: int) -> Tensor:
    def weight(name: str) -> Tensor:
        if f"{name}.u0" not in s:
            return s[f"{name}.weight"]
        matrix, u = s[f"{name}.weight"].flatten(1), s[f"{name}.u0"][0]
        v = matrix.T @ u / (matrix.T @ u).norm()
        return s[f"{name}.weight"] / (matrix @ v).norm()

    def conv(name: str, x: Tensor) -> Tensor:
        w = weight(name)
        return F.conv2d(x, w, s.get(f"{name}.bias"), padding=w.shape[-1] // 2)

    def normal(name: str, x: Tensor) -> Tensor:
        mean, var = (s[f"{name}.stored_{k}"].view(1, -1, 1, 1) for k in ("mean", "var"))
        return (x - mean) / (var + EPS).sqrt()

    def cond(name: str, x: Tensor, c: Tensor) -> Tensor:
        gain, bias = (c @ weight(f"{name}.{k}").T for k in ("gain", "bias"))
        return torch.relu(normal(name, x) * (1 + gain[..., None, None]) + bias[..., None, None])

    def up(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = (z[:, :CHUNK] @ weight("linear").T + s["linear.bias"]).view(len(z), 16, 4, 4)
    for i, (_, _, attention) in enumerate(WIDTHS):
        c = torch.cat([e, z[:, CHUNK * (i + 1) : CHUNK * (i + 2)]], 1) if chunk else e
        h = conv(f"blocks.{i}.0.conv1", up(cond(f"blocks.{i}.0.bn1", x, c)))
        h = conv(f"blocks.{i}.0.conv2", cond(f"blocks.{i}.0.bn2", h, c))
        x = h + conv(f"blocks.{i}.0.conv_sc", up(x))
        if attention:
            n = f"blocks.{i}.1"
            k, v = (F.max_pool2d(conv(f"{n}.{p}", x), 2).flatten(2) for p in ("phi", "g"))
            scores = torch.einsum("ncq,nck->nqk", conv(f"{n}.theta", x).flatten(2), k).softmax(-1)
            o = torch.einsum("nqk,nck->ncq", scores, v).view(len(x), -1, *x.shape[2:])
            x = x + s[f"{n}.gamma"] * conv(f"{n}.o", o)
    return torch.tanh(conv("output_layer.2", torch.relu(normal("output_layer.0", x))))


@pytest.mark.parametrize("chunk", [CHUNK, 0], ids=["hierarchical", "flat"])
def test_equals_the_plain_implementation(chunk: int, tmp_path: Path) -> None:
    state = made(chunk)
    torch.save(state, tmp_path / "G_ema.pth")
    ours = generators.load(f"biggan:{tmp_path / 'G_ema.pth'}")
    z = torch.randn(3, CHUNK * 4 if chunk else CHUNK)
    labels, soft = torch.tensor([0, 5, 2]), torch.softmax(torch.randn(3, CLASSES), 1)
    table = state["shared.weight"]
    for condition, embedding in ((labels, table[labels]), (soft, soft @ table)):
        expected = plain(state, z, embedding, chunk)
        assert expected.std() > 0.05
        found = ours.generate(z, condition)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (ours.card.image_size, ours.card.num_classes) == (32, CLASSES)


@pytest.mark.parametrize("chunk", [CHUNK, 0], ids=["hierarchical", "flat"])
def test_is_rewritten_whole(chunk: int, tmp_path: Path) -> None:
    torch.save(made(chunk), tmp_path / "G_ema.pth")
    original = generators.load(f"biggan:{tmp_path / 'G_ema.pth'}")
    result = generators.optimize(original)
    assert result.left is None
    z, soft = torch.randn(5, original.card.latent_dim), torch.softmax(torch.randn(5, CLASSES), 1)
    found, expected = result.module.generate(z, soft), original.generate(z, soft)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_without_shared_embeddings(tmp_path: Path) -> None:
    """Every norm has its own class table: equivalent to a shared table of one-hot rows and transposed Linears."""
    state = made(0)
    tables = {}
    for name in [n for n in state if re.search(r"bn[12]\.(gain|bias)\.weight$", n)]:
        tables[name] = torch.randn(CLASSES, len(state[name])) * 0.3
        del state[name.replace("weight", "u0")], state[name.replace("weight", "sv0")]
    del state["shared.weight"]
    torch.save(state | tables, tmp_path / "G.pth")
    ours = generators.load(f"biggan:{tmp_path / 'G.pth'}")
    assert ours.card.condition == "soft-vector"
    for name, table in tables.items():
        state[name] = table.T
    z, labels = torch.randn(3, CHUNK), torch.tensor([0, 5, 2])
    soft = torch.softmax(torch.randn(3, CLASSES), 1)
    for condition, vector in ((labels, F.one_hot(labels, CLASSES).float()), (soft, soft)):
        expected = plain(state, z, vector, 0)
        assert expected.std() > 0.05
        torch.testing.assert_close(ours.generate(z, condition), expected, atol=1e-5, rtol=0)


def test_standing_statistics(tmp_path: Path) -> None:
    """Collected once if the file has none: normalized by them, a norm's input has mean 0 and variance 1."""
    path, state = tmp_path / "G.pth", made(CHUNK)
    for name, value in state.items():
        if name.endswith(("stored_mean", "stored_var")):
            value.fill_(name.endswith("var"))
    torch.save(state, path)
    with pytest.raises(UserError, match=r"no statistics of its norms.*\?statistics=standing"):
        generators.load(f"biggan:{path}")
    ours = generators.load(f"biggan:{path}?statistics=standing")
    seen: list[Tensor] = []
    norm = ours.blocks[2][0].bn2
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ours.generate(torch.randn(512, CHUNK * 4), torch.arange(512) % CLASSES)
    normal = F.batch_norm(seen[0], norm.stored_mean, norm.stored_var, eps=EPS)
    assert normal.mean((0, 2, 3)).abs().max() < 0.1
    torch.testing.assert_close(normal.var((0, 2, 3)), torch.ones(8), atol=0.25, rtol=0)
    z, labels = torch.randn(3, CHUNK * 4), torch.tensor([0, 1, 2])
    alone = ours.generate(z[:1], labels[:1])
    torch.testing.assert_close(ours.generate(z, labels)[:1], alone, atol=1e-5, rtol=0)


def test_checkpoints_as_authors_save_them(tmp_path: Path) -> None:
    """Next to a script's arguments, in a dict, with wrappers' prefixes, or one of several."""
    path, state = tmp_path / "G.pth", made(CHUNK)
    torch.save(state, path)
    z, labels = torch.randn(2, CHUNK * 4), torch.tensor([0, 5])
    expected = generators.load(f"biggan:{path}").generate(z, labels)
    args = argparse.Namespace(lr=0.1, out=Path("runs"))
    wrapped = {f"module.{name}": value for name, value in state.items()}
    noise = {name: torch.randn_like(value) for name, value in state.items()}
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
    for content, choice in (
        ({"state_dict": state}, ""),
        ({"ema": wrapped, "args": args}, ""),
        ({"model": noise, "ema": wrapped, "opt": optimizer, "args": args}, "#ema"),
    ):
        torch.save(content, path)
        found = generators.load(f"biggan:{path}{choice}").generate(z, labels)
        assert torch.equal(found, expected)
    with pytest.raises(UserError, match="holds several that fit: 'model', 'ema'"):
        generators.load(f"biggan:{path}")


def test_mistakes(tmp_path: Path) -> None:
    path, state = tmp_path / "G.pth", made(CHUNK)
    torch.save({k: v for k, v in state.items() if k != "blocks.1.0.conv2.bias"}, path)
    with pytest.raises(UserError, match=r"missing: blocks\.1\.0\.conv2\.bias"):
        generators.load(f"biggan:{path}")
    torch.save({k: v for k, v in state.items() if k != "shared.weight"}, path)
    with pytest.raises(UserError, match="does not fit the architecture BigGAN"):
        generators.load(f"biggan:{path}")
    torch.save(state | {"linear.u1": torch.zeros(1, 256)}, path)
    with pytest.raises(UserError, match="several singular vectors"):
        generators.load(f"biggan:{path}")
