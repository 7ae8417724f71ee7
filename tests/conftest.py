"""A tiny task that trains in seconds: 8x8 blobs, a generator and a classifier with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ptgm_fast import generators, models
from ptgm_fast.config import RunConfig, load_config
from ptgm_fast.generators.card import ClassifierCard, FileCard, GeneratorCard, write_card
from ptgm_fast.models import save_weights, sha256

NUM_SOURCE_CLASSES = 6
# With `--dist loadfile` a file is one process's. The long ones first: a process that begins one last is waited for.
LONGEST = (
    "tests/runs/test_distributed.py",
    "tests/gpu_check/test_dry.py",
    "tests/benchmarks/test_registry.py",
    "tests/kernels/consistency/test_consistency.py",
    "tests/kernels/views/test_views_devices.py",
    "tests/cli/test_cli.py",
    "tests/runs/test_compare.py",
    "tests/runs/test_kill.py",
    "tests/runs/test_three_sizes.py",
    "tests/test_package.py",
    "tests/kernels/latents/test_latents.py",
    "tests/kernels/tooling/test_tooling.py",
    "tests/generators/test_biggan_deep.py",
    "tests/generators/rewriter/test_optimize.py",
    "tests/benchmarks/test_eager_loop.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the tests of tests/slow.txt")


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files of most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))
    if not config.getoption("--fast"):
        return
    listed = set((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines())
    left_out = [item for item in items if item.nodeid.partition("[")[0] in listed]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # With small tensors more threads only wait for each other, especially when other work runs at the same time.
    torch.set_num_threads(1)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Set torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(2)


def write_pair(folder: Path, *, channels: int = 1, seed: int = 0) -> Path:
    """A source pair with random weights, in the form that `ptgm-fast source` writes."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    card = GeneratorCard(
        name="tiny",
        num_classes=NUM_SOURCE_CLASSES,
        class_names=tuple("abcdef"),
        latent_dim=4,
        embedding_dim=5,
        image_size=8,
        channels=channels,  # type: ignore[arg-type]
        widths=(8, 6),
        data="random weights for tests",
        classifier=ClassifierCard(architecture="ptgm:cnn-small"),
    )
    save_weights(generators.ConditionalBatchNormGenerator(card), folder / "generator.safetensors")
    classifier = models.build(
        "ptgm:cnn-small", num_classes=NUM_SOURCE_CLASSES, channels=channels, image_size=8
    )
    save_weights(classifier, folder / "classifier.safetensors")
    files = {
        name: FileCard(sha256=sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in ("generator.safetensors", "classifier.safetensors")
    }
    write_card(card.model_copy(update={"files": files}), folder)
    return folder


def write_blobs(path: Path, *, num_per_class: int = 30, num_classes: int = 3) -> Path:
    """Write images [N, 8, 8] with a bright blob whose position is the class."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(num_classes), num_per_class)
    x = rng.integers(0, 60, (len(y), 8, 8))
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 3, 1:6] += 160
    np.savez(path, x=x.astype(np.uint8), y=y)
    return path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("pair") / "tiny")


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("data") / "blobs.npz")


@pytest.fixture
def tiny_toml(pair: Path, blobs: Path, tmp_path: Path) -> Path:
    """The tiny task as a file: 12 pseudo pre-training and 20 target steps."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
task = "blobs"
[data]
images = "npz:{blobs}"
labels_per_class = 5
validation_per_class = 5
test_per_class = 10
[source]
generator = "{pair}"
optimize = false  # tracing takes longer than the whole run; tests that mean it ask for it
[synthesis]
images = "fresh"
images_per_target = "fresh"
[pp]
steps = 12
batch_size = 16
log_every = 4
checkpoint_every = 5
[training]
steps = 20
batch_size = 8
log_every = 5
checkpoint_every = 6
validate_every = 10
[p_ssl]
batch_size = 8
"""
    )
    return path


@pytest.fixture
def tiny(tiny_toml: Path) -> Callable[..., RunConfig]:
    """tiny("p_ssl.method=uda", ...) is the tiny task's config with overrides."""

    def config(*overrides: str, seed: int | None = None) -> RunConfig:
        return load_config(tiny_toml, list(overrides), seed)

    return config
