"""The bundled pair with one planted mistake at a time: each is reported."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ptgm_fast import generators
from ptgm_fast.config import RunConfig
from ptgm_fast.models import save_weights
from ptgm_fast.runs.check import CHECK, SHEET, check, check_at_start
from ptgm_fast.runs.task import build_task
from ptgm_fast.sampling.source import SourceModels

Tiny = Callable[..., RunConfig]
MODULES = """
import torch
from ptgm_fast import generators

class Letters(torch.nn.Module):
    num_classes, latent_dim, condition = 52, 16, "soft-vector"
    def __init__(self):
        super().__init__()
        self.network = generators.load("letters")
    def forward(self, latents, soft):
        return self.network.generate(latents, soft, kind="soft-label")

class Half(Letters):
    def forward(self, latents, soft):
        return (super().forward(latents, soft) + 1) / 2

class Red(Letters):
    def forward(self, latents, soft):
        image = super().forward(latents, soft)
        return torch.cat([image, -image.abs(), -torch.ones_like(image)], 1)

class Blue(Red):
    def forward(self, latents, soft):
        return super().forward(latents, soft).flip(1)

def sees_red(num_classes, channels):
    return Reds(num_classes, channels)

class Reds(torch.nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        from ptgm_fast.models import build
        self.network = build("ptgm:cnn-small", num_classes=num_classes, channels=1, image_size=28)
    def forward(self, images):
        return self.network(images[:, :1])
"""


@pytest.fixture(scope="module")
def letters() -> torch.nn.Module:
    return generators.load_classifier("letters")


@pytest.fixture
def with_letters(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: torch.nn.Module
) -> Callable[..., RunConfig]:
    """The bundled pair: the letters generator as a module, and its classifier with its last layer's rows in any order."""
    name = f"pairs_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULES))
    monkeypatch.chdir(tmp_path)

    def config(
        generator: str, *settings: str, rows: torch.Tensor | None = None, reds: bool = False
    ) -> RunConfig:
        state = dict(letters.state_dict())
        if rows is not None:
            last = [key for key in state if state[key].shape[:1] == (52,)]
            assert len(last) == 2
            state |= {key: state[key][rows] for key in last}
        if reds:
            state = {f"network.{key}": value for key, value in state.items()}
        save_weights(state, tmp_path / "c.safetensors")
        network = f"{name}:sees_red" if reds else "ptgm:cnn-small"
        return tiny(
            f"source.generator={'letters' if generator == 'letters' else f'module:{name}:{generator}'}",
            f"source.classifier.network={network}",
            "source.classifier.weights=c.safetensors",
            "target.network=ptgm:cnn-small",
            *settings,
        )

    return config


NORMALIZED = "another normalization, 0.5/0.5"
PERMUTATION = torch.randperm(52, generator=torch.Generator().manual_seed(1))
MISTAKES = {
    "normalization of ImageNet": (
        "letters",
        {"settings": ["source.classifier.mean=[0.449]", "source.classifier.std=[0.226]"]},
        NORMALIZED,
    ),
    "no normalization": (
        "letters",
        {"settings": ["source.classifier.mean=[0.0]", "source.classifier.std=[1.0]"]},
        NORMALIZED,
    ),
    "images in 0 to 255": (
        "letters",
        {"settings": ["source.classifier.mean=[0.0]", "source.classifier.std=[0.00392157]"]},
        NORMALIZED,
    ),
    "output in [0, 1]": ("Half", {}, "the generator's images are in [0, 1], not in [-1, 1]"),
    "output in [-1, 1]": (
        "Letters?output_range=0,1",
        {},
        "the generator's images are in [-1, 1], not in [0, 1]",
    ),
    "blue first": ("Blue", {"reds": True}, "BGR order"),
    "shifted up": ("letters", {"rows": torch.arange(52).roll(1)}, "class after c"),
    "shifted down": ("letters", {"rows": torch.arange(52).roll(-1)}, "class before c"),
    "permuted": ("letters", {"rows": PERMUTATION}, "in a different order than the generator's"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_named(
    with_letters: Callable[..., RunConfig], tmp_path: Path, mistake: str
) -> None:
    generator, planted, cause = MISTAKES[mistake]
    config = with_letters(generator, *planted.pop("settings", []), **planted)
    notices: list[str] = []
    record = check_at_start(build_task(config), tmp_path, notices.append)
    assert record is not None
    assert record.pair.explanation is not None
    assert cause in record.pair.explanation.cause
    assert record.pair.explanation.top1 > 0.9 > record.pair.top1
    assert any(cause in notice for notice in notices)


@pytest.mark.parametrize(("generator", "reds"), [("letters", False), ("Red", True)])
def test_a_pair_that_fits(
    with_letters: Callable[..., RunConfig], tmp_path: Path, generator: str, reds: bool
) -> None:
    task = build_task(with_letters(generator, reds=reds))
    record = check(task, tmp_path / "out", samples=208)
    assert (record.pair.samples, record.pair.classes) == (208, 26)
    assert record.pair.top1 > 0.9
    assert record.pair.explanation is None
    assert not any("agrees" in warning for warning in record.warnings)
    with Image.open(tmp_path / "out" / SHEET) as sheet:
        assert sheet.size == (26 * 28, 8 * 28)


def test_agreement_is_counted(with_letters: Callable[..., RunConfig], tmp_path: Path) -> None:
    """Against a direct count; a classifier that predicts a single class agrees only with that class's samples."""
    task = build_task(with_letters("letters", rows=torch.zeros(52, dtype=torch.long)))
    record = check(task, tmp_path / "out", samples=416)
    assert record.pair.top1 == pytest.approx(1 / 52)
    assert record.pair.top5 == pytest.approx(5 / 52)
    assert record.pair.explanation is None
    assert {(c.given, c.share) for c in record.pair.confused} == {("A", 1.0)}
    assert "know other classes" in record.warnings[0]


def test_what_target_images_ask_for(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known soft labels: those of classes 0 and 1 are alike, class 2's differ; one image is undecided."""
    task = build_task(tiny())
    labels = task.data.train.labels
    logits = torch.full((len(labels), 6), -30.0)
    logits[labels < 2, 0] = 30.0
    logits[labels == 2, 1] = 30.0
    undecided = int((labels == 2).nonzero()[0])
    logits[undecided] = 0.0

    def classify(source: SourceModels, images: torch.Tensor) -> torch.Tensor:
        asks = images.dtype == torch.uint8
        return logits if asks else torch.zeros(len(images), 6)

    monkeypatch.setattr(SourceModels, "classify", classify)
    target = check(task, tmp_path / "out", samples=12).target
    assert target is not None
    assert target.entropy == pytest.approx(1 / len(labels), abs=1e-6)
    assert (target.uncertain[0].image, target.uncertain[0].class_name) == (undecided, "2")
    assert target.uncertain[0].entropy == pytest.approx(1.0)
    assert target.alike[0].classes == ("0", "1")
    assert target.alike[0].overlap == pytest.approx(1.0)
    # One of five images of class 2 gives class 0 a sixth.
    assert target.alike[1].overlap == pytest.approx(1 / 30, abs=1e-6)


def test_a_run_checks_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = build_task(tiny())
    state = torch.get_rng_state()
    first = check_at_start(task, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    written = (tmp_path / CHECK).stat().st_mtime_ns
    assert check_at_start(task, tmp_path) == first
    assert (tmp_path / CHECK).stat().st_mtime_ns == written
    with torch.no_grad():
        next(task.source.classifier.parameters()).add_(1.0)
    assert check_at_start(task, tmp_path).key != first.key
    scratch = build_task(tiny('stages=["supervised"]'))
    assert check_at_start(scratch, tmp_path) is None
