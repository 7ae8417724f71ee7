"""The examples run, and what they train learns."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in [p.stem for p in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "package"),
    [("plain_loop", ""), ("accelerate_script", "accelerate"), ("lightning_module", "lightning")],
)
def test_it_learns(name: str, package: str, example: Any) -> None:
    if package:
        pytest.importorskip(package)
    losses = example(name).main(60)
    assert len(losses) == 60
    assert sum(losses[-10:]) / 10 < 0.9 * losses[0]


def test_data_loader(example: Any) -> None:
    assert example("data_loader").main(5) == [0, 64, 128, 192, 256]
