"""The example notebook: it is stored without outputs, and runs from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs() -> None:
    for cell in code_cells():
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one namespace, as in a kernel; Jupyter is not needed."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(), 1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
    losses = namespace["losses"]
    assert sum(losses[-10:]) / 10 < 0.9 * losses[0]
    # Ten classes: far above chance, after few steps.
    assert namespace["summary"]["target"]["test_accuracy"] > 0.4
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / "runs" / "quickstart" / "model.safetensors").is_file()
