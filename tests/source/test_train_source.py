"""A whole source pair in seconds: determinism, what is written, and what each mistake says."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from ptgm_fast import generators
from ptgm_fast.errors import UserError
from ptgm_fast.models import sha256
from ptgm_fast.training.source import SourceOptions, networks, train_source

MakeOptions = Callable[..., SourceOptions]
BUNDLED = Path(generators.folder_of("letters"))


def test_a_pair_is_written_and_loads(make_options: MakeOptions, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []

    def report(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        assert all(np.isfinite(value) for value in metrics.values())
        reports.append((stage, step, steps))

    out = tmp_path / "out"
    card = train_source(make_options(equivalent="ignore-case"), out, report=report)
    assert [stage for stage, step, steps in reports if step == steps] == [
        "classifier",
        "generator",
        "judge",
    ]
    assert generators.load_card(str(out)) == card
    assert card.files["generator.safetensors"].sha256 == sha256(out / "generator.safetensors")
    assert card.training["num_images"] == 27
    images = generators.load(str(out)).generate(torch.zeros(3, 4), torch.arange(3))
    assert images.shape == (3, 1, 12, 12)
    assert generators.load_classifier(str(out))(images).shape == (3, 3)
    for figure in ("classifier_accuracy", "judge_accuracy", "obedience_by_judge"):
        # "bar" and "Bar" count as one here.
        assert 0 <= card.figures[figure]["exact"] <= card.figures[figure]["equivalent"] <= 1
    assert card.figures["diversity_pixels"] > 0
    with Image.open(out / "samples.png") as sheet:
        assert sheet.size == (3 * 12, 4 * 12)


def test_same_seed_same_bits(make_options: MakeOptions, tmp_path: Path) -> None:
    files = ("generator.safetensors", "classifier.safetensors", "samples.png")
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        # The caller's own generator must not matter, nor be disturbed.
        torch.manual_seed(len(digests))
        before = torch.get_rng_state()
        card = train_source(make_options(seed=seed), tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)
        digests.append([sha256(tmp_path / name / file) for file in files] + [str(card.figures)])
    assert digests[0] == digests[1]
    assert all(one != other for one, other in zip(digests[0][:3], digests[2][:3], strict=True))


@pytest.mark.slow
def test_training_learns(make_options: MakeOptions, tmp_path: Path) -> None:
    card = train_source(
        make_options(
            classifier={"steps": 80}, judge={"steps": 80}, generator={"steps": 200, "checkpoint_every": 50},
            samples_per_class=16, deformation={"rotation": 5.0, "shear": 0.1, "thicken": 0.0, "displacement": 0.02},
        ),
        tmp_path / "out",
    )  # fmt: skip
    assert card.figures["judge_accuracy"]["exact"] > 0.8
    assert card.figures["obedience_by_judge"]["exact"] > 0.8


@pytest.mark.slow
def test_the_bundled_configuration_runs(tmp_path: Path) -> None:
    given = tomllib.loads((BUNDLED / "source.toml").read_text())
    rng = np.random.default_rng(0)
    names = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]
    data = tmp_path / "letters.npz"
    x = rng.integers(0, 256, (52 * 24, 28, 28), dtype=np.uint8)
    np.savez(data, x=x, y=np.repeat(np.arange(52), 24), class_names=np.array(names))
    given["data"] = f"npz:{data}"
    for stage in ("classifier", "generator", "judge"):
        given[stage]["steps"] = 3
    card = train_source(SourceOptions.model_validate(given), tmp_path / "out")
    bundled = generators.load_card("letters")
    assert (card.class_names, card.widths) == (bundled.class_names, bundled.widths)
    assert {n: f.bytes for n, f in card.files.items()} == {
        n: f.bytes for n, f in bundled.files.items()
    }


def test_an_existing_pair_is_not_overwritten(make_options: MakeOptions, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "classifier.safetensors").write_bytes(b"precious")
    with pytest.raises(
        UserError, match=r"already holds classifier\.safetensors; choose another folder"
    ):
        train_source(make_options(), out)
    assert (out / "classifier.safetensors").read_bytes() == b"precious"


def test_a_loss_that_is_not_finite(make_options: MakeOptions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss of stage 'classifier' is nan at step 6"):
        train_source(make_options(classifier={"lr": 1e30}), tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_the_last_good_generator_is_kept(
    make_options: MakeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options()
    calls = 0

    def poisoned(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        terms = networks_objective(*args, **kwargs)  # type: ignore[arg-type]
        return {name: term * float("nan") for name, term in terms.items()} if calls == 4 else terms

    networks_objective = networks.objective
    monkeypatch.setattr(networks, "objective", poisoned)
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"loss of stage 'generator' is nan at step 4: generator\.safetensors holds"
    ):
        train_source(options, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "classifier.safetensors",
        "generator.safetensors",
    ]

    assert all(bool(t.isfinite().all()) for t in load_file(out / "generator.safetensors").values())


def test_too_few_images_names_the_class(make_options: MakeOptions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class 'bar' of npz:.* has 12 images, but 13 are needed"):
        train_source(make_options(holdout_per_class=11), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_class_is_named(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "empty.npz"
    np.savez(
        path,
        x=np.zeros((20, 12, 12), np.uint8),
        y=np.repeat([0, 2], 10),
        class_names=np.array(["a", "b", "c"]),
    )
    with pytest.raises(UserError, match=r"class 'b' .*0 images"):
        train_source(make_options(data=f"npz:{path}"), tmp_path / "out")


def test_one_class_is_too_few(make_options: MakeOptions, tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, x=np.zeros((20, 12, 12), np.uint8), y=np.zeros(20, np.int64))
    with pytest.raises(UserError, match="at least two"):
        train_source(make_options(data=f"npz:{path}"), tmp_path / "out")


def test_a_wrong_group_is_found_before_training(make_options: MakeOptions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names the class 'barr'"):
        train_source(make_options(equivalent=[["bar", "barr"]]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_fit(make_options: MakeOptions) -> None:
    with pytest.raises(ValidationError, match="image_size = 14 is not a multiple of 4"):
        make_options(image_size=14)
    with pytest.raises(ValidationError, match=r"the judge needs a different one"):
        make_options(judge={"architecture": "ptgm:cnn-small"})
    with pytest.raises(ValidationError, match=r"generator\.lrr"):
        make_options(generator={"lrr": 1.0})


def test_weights_that_are_not_finite_are_not_saved(
    make_options: MakeOptions, tmp_path: Path
) -> None:
    options = make_options(generator={"lr": 1e30, "steps": 2, "checkpoint_every": 1})
    with pytest.raises(UserError, match=r"loss of stage 'generator' is nan at step [12]"):
        train_source(options, tmp_path / "out")
    for path in (tmp_path / "out").glob("generator*"):
        state = load_file(path)
        assert all(bool(t.isfinite().all()) for t in state.values())
