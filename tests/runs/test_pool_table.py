"""The table from which a default is chosen: fresh images and pools, on validation images."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "pool_table.py"


def test_the_table_has_a_row_a_size(
    tiny_toml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("pool_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(tiny_toml), "--seeds", "1,2", "--method", "pp+p-ssl", "--parts", "2,4"])
    output = capsys.readouterr()
    lines = [line for line in output.out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["fresh", "1/2", "1/4"]
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "+0.00 ± 0.00 |" in lines[2]
    assert len(output.err.splitlines()) == 6
