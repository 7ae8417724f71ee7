"""A profiled run, a plain one and a comparison, of the tiny task: made once."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptgm_fast.config import load_config
from ptgm_fast.runs.train import train

COMPARISON = Path(__file__).resolve().parents[2] / "docs/results/compare-letters-digits.json"


@pytest.fixture(scope="session")
def folders(pair: Path, blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `profiled`, `plain` and `methods` in it."""
    # The first optimizer of a process imports it, longer than these stages last.
    import torch._dynamo  # noqa: F401

    root = tmp_path_factory.mktemp("runs")
    settings = [
        f'data.images="npz:{blobs}"',
        "data.labels_per_class=5",
        "data.validation_per_class=5",
        "data.test_per_class=10",
        f'source.generator="{pair}"',
        "source.optimize=false",
        "pp.steps=24",
        "pp.batch_size=16",
        "pp.log_every=4",
        "training.steps=24",
        "training.batch_size=8",
        "training.log_every=4",
        "training.validate_every=8",
        "p_ssl.batch_size=8",
    ]
    train(load_config(None, [*settings, 'task="a <b> & $c$"']), root / "profiled", profile=True)
    train(load_config(None, settings, 1), root / "plain")
    (root / "methods").mkdir()
    shutil.copy(COMPARISON, root / "methods" / "compare.json")
    return root


@pytest.fixture
def run(folders: Path, tmp_path: Path) -> Path:
    """A copy of the profiled run, to damage."""
    shutil.copytree(folders / "profiled", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: one that is installed, else playwright's own; skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    installed = next((path for name in names if (path := shutil.which(name))), None)
    with playwright.sync_playwright() as started:
        path = installed or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(f"no browser: none of {', '.join(names)} is installed")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def read(path: Path) -> Any:
    return json.loads(path.read_text())
