"""`module:` generators: a DCGAN with one-hot input, soft labels to networks of indices, safe weights."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ptgm_fast import generators, kernels
from ptgm_fast.errors import UserError
from ptgm_fast.generators.soft import sample_classes
from ptgm_fast.models import save_weights, sha256

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)  # as a user runs the command beside the module
    torch.manual_seed(0)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(generators.load("module:own_dcgan:DCGAN").network, tmp_path / "g.safetensors")
    return tmp_path / "g.safetensors"


def test_a_dcgan_with_one_hot_input(weights: Path) -> None:
    generator = generators.load(f"module:own_dcgan:DCGAN?weights={weights}")
    latents, labels = torch.randn(4, 16), torch.tensor([0, 3, 9, 3])
    one_hot = F.one_hot(labels, 10).float()
    images = generator.generate(latents, labels)
    assert torch.equal(images, generator.network(latents, one_hot))
    soft = torch.softmax(torch.randn(4, 10), 1)
    assert torch.equal(generator.generate(latents, soft), generator.network(latents, soft))
    card = generator.card
    assert (card.image_size, card.channels, card.condition) == (8, 3, "soft-vector")
    assert card.files["g.safetensors"].sha256 == sha256(weights)
    half = generator.generate(latents, labels, truncation=0.5)
    assert torch.equal(half, generator.network(latents * 0.5, one_hot))


def test_soft_labels_are_never_hardened_in_silence() -> None:
    generator = generators.load("module:own_dcgan:Indexed")
    with pytest.raises(UserError, match=r'soft="mix-embedding".* or soft="sample-class"'):
        generator.generate(torch.zeros(2, 3), torch.full((2, 5), 0.2))
    assert generator.card.soft_labels == "refused"


def test_mix_embedding_mixes_every_table() -> None:
    generator = generators.load("module:own_dcgan:Indexed?soft=mix-embedding")
    network = generator.network
    latents, soft = torch.randn(4, 3), torch.softmax(torch.randn(4, 5), 1)
    hidden = (network.linear(latents) * (soft @ network.first.weight)).repeat(1, 3)
    expected = (hidden + soft @ network.second.weight).view(-1, 3, 4, 4).tanh()
    torch.testing.assert_close(generator.generate(latents, soft), expected)
    labels = torch.tensor([0, 1, 2, 4])
    assert torch.equal(generator.generate(latents, labels), network(latents, labels))
    assert generator.card.soft_labels == "mix-embedding"
    with pytest.raises(UserError, match=r"torch\.nn\.Embedding of num_classes = 10 rows"):
        generators.load("module:own_dcgan:DCGAN", soft="mix-embedding")


def test_a_null_class_is_not_mixed() -> None:
    """Guidance doubles the batch inside; mixed classes are traced and rewritten like any others."""
    generator = generators.load("module:own_dcgan:Guided?soft=mix-embedding")
    network = generator.network
    latents, soft = torch.randn(4, 3), torch.softmax(torch.randn(4, 5), 1)
    hidden, table = network.linear(latents), network.table.weight
    with_class, without = hidden * (soft @ table[:5]), hidden * table[5]
    expected = (without + 2 * (with_class - without)).view(-1, 3, 4, 4).tanh()
    labels = torch.tensor([0, 4, 2, 4])
    optimized = generators.optimize(generator)
    assert optimized.left is None
    for made in (generator, optimized.module):
        torch.testing.assert_close(made.generate(latents, soft), expected)
        torch.testing.assert_close(made.generate(latents, labels), network(latents, labels))
    assert torch.equal(network(latents, labels), generator.generate(latents, labels))
    with pytest.raises(UserError, match="null_class = 4 is one of the 5 classes"):
        generators.load("module:own_dcgan:Guided?null_class=4")


def test_labels_that_are_used_in_other_ways_cannot_be_mixed() -> None:
    with pytest.raises(UserError, match="uses its labels in other ways too; use soft=sample-class"):
        generators.load("module:own_dcgan:Checked?soft=mix-embedding")
    generators.load("module:own_dcgan:Checked?soft=sample-class")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("Unconditional", "ignores its label"),
        ("Deaf", "ignores its latents"),
        ("Unit", r"none negative.*output_range=0,1"),
        ("Bytes?output_range=0,100", "the output_range 0,100 does not contain them"),
    ],
)
def test_what_is_most_likely_not_meant_is_said(uri: str, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        generators.load(f"module:own_dcgan:{uri}")


@pytest.mark.parametrize(
    "uri", ["Unit?output_range=0,1", "Unit?output_range=-1,1", "Bytes?output_range=0,255", "Noise"]
)
def test_what_is_meant_passes_in_silence(uri: str) -> None:
    notices: list[str] = []
    generators.load(f"module:own_dcgan:{uri}", on_notice=notices.append)
    assert notices == []


def test_sampled_classes_follow_the_soft_label_and_the_sample() -> None:
    latents = kernels.latents(20_000, 4, seed=3)
    soft = torch.tensor([[0.5, 0.3, 0.0, 0.2]]).expand(20_000, 4)
    classes = sample_classes(soft, latents, seed=1)
    shares = torch.bincount(classes, minlength=4) / 20_000
    torch.testing.assert_close(shares, soft[0], atol=0.015, rtol=0)
    assert shares[2] == 0
    # The class must not depend on the latents' sign or size: the two draws must look independent.
    assert (latents[classes == 0].mean(0)).abs().max() < 0.04
    parts = [sample_classes(soft[:7], part, seed=1) for part in latents[:21].split(7)]
    assert torch.equal(torch.cat(parts), classes[:21]), "depends on the batch"
    assert (sample_classes(soft, latents, seed=2) != classes).float().mean() > 0.4
    generator = generators.load("module:own_dcgan:Indexed", soft="sample-class", soft_seed=1)
    some = torch.softmax(torch.randn(6, 5), 1)
    drawn = sample_classes(some, latents[:6, :3], seed=1)
    assert torch.equal(
        generator.generate(latents[:6, :3], some), generator.network(latents[:6, :3], drawn)
    )
    assert (generator.card.soft, generator.card.soft_seed) == ("sample-class", 1)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("module:own_dcgan:Nothing", "no function or class 'Nothing'"),
        ("module:not_there:G", "cannot be imported"),
        ("module:own_dcgan:DCGAN?weights=none.pt", "does not exist"),
        ("module:own_dcgan:DCGAN?num_classes=9", "the network failed on latents"),
        ("module:own_dcgan:OwnSeed", "a different image alone than in a batch"),
        ("module:own_dcgan:BatchStatistics", "a different image alone than in a batch"),
        ("module:own_dcgan:Bytes", r"no output_range is stated.*output_range=0,255"),
        ("module:own_dcgan:RGBA", "4 channels; accepted: 1 .* or 3"),
        ("module:own_dcgan:Unbuildable", r"RuntimeError: Attempting .*own_dcgan\.py line \d+"),
        ("module:own_dcgan:exits", "SystemExit: usage"),
        ("module:own_broken:G", r"OSError: weights\.pt is not there"),
        ("module:own_dcgan:Guided?soft=mix-embedding&null_class=6", "tables of 6 rows; name the"),
        ("module:own_dcgan:DCGAN?num_classes=ten", "must be a whole number"),
        ("module:own_dcgan:DCGAN?surprise=1", "unknown option surprise; accepted: condition"),
        ("module:own_dcgan:DCGAN?soft=argmax", "accepted: mix-embedding, sample-class"),
        ("module:own_dcgan:DCGAN?sha256=00", "without weights"),
        ("module:own_dcgan:DCGAN?condition", "written"),
        ("stylegan9:x", r"Accepted:(.|\n)*biggan-deep:DIR_OR_FILE"),
    ],
)
def test_mistakes(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generators.load(uri)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    effect, path = tmp_path / "effect", tmp_path / "g.pt"
    content = {"net.0.weight": Malicious(effect)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="loading it could run code"):
        generators.load(f"module:own_dcgan:DCGAN?weights={path}")
    assert not effect.exists()
    torch.load(path, weights_only=False) if form == "torch" else pickle.loads(path.read_bytes())
    assert effect.exists(), "the pickle was harmless: this test proved nothing"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0, 100, -10])
def test_truncated_files(suffix: str, kept: int, weights: Path) -> None:
    path = weights.with_name(f"cut{suffix}")
    if suffix == ".pt":
        torch.save(generators.load("module:own_dcgan:DCGAN").network.state_dict(), path)
        data = path.read_bytes()
    else:
        data = weights.read_bytes()
    path.write_bytes(data[:kept])
    with pytest.raises(UserError, match=r"damaged|is empty|more than tensors"):
        generators.load(f"module:own_dcgan:DCGAN?weights={path}")


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    state = {"net.0.weight": torch.zeros(27, 3, 8, 8), "extra": torch.zeros(1)}
    torch.save(state, tmp_path / "g.pt")
    with pytest.raises(
        UserError, match=r"missing: net\.0\.bias\nunexpected: extra\nof the wrong shape.*27"
    ):
        generators.load(f"module:own_dcgan:DCGAN?weights={tmp_path / 'g.pt'}")


def test_a_checkpoint_of_a_training_script(weights: Path, tmp_path: Path) -> None:
    network = generators.load(f"module:own_dcgan:DCGAN?weights={weights}").network
    ema = {f"module.{name}": value for name, value in network.state_dict().items()}
    other = {name: torch.randn_like(value) for name, value in ema.items()}
    content = {"model": other, "ema": ema, "args": argparse.Namespace(seed=0)}
    torch.save(content, tmp_path / "last.pt")
    notices: list[str] = []
    uri = f"module:own_dcgan:DCGAN?weights={tmp_path / 'last.pt'}"
    loaded = generators.load(f"{uri}#ema", on_notice=notices.append).network
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert len(notices) == 1
    with pytest.raises(UserError, match="several that fit"):
        generators.load(uri)


def test_the_example_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (HERE.parents[1] / "docs" / "generators.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_generator.py").write_text(f"import torch\n{example}")
    monkeypatch.chdir(tmp_path)
    generator = generators.load("module:my_generator:DCGAN")
    save_weights(generator.network, "dcgan.safetensors")
    loaded = generators.load("module:my_generator:DCGAN?weights=dcgan.safetensors")
    latents, labels = torch.randn(2, 16), torch.tensor([1, 9])
    assert torch.equal(loaded.generate(latents, labels), generator.generate(latents, labels))
