"""SIGKILL at any moment: the resumed run ends with bitwise the weights, or images, of an uninterrupted one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "kill_worker.py"
KILLS = 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    tiny_toml: Path, tmp_path: Path
) -> None:
    line = [sys.executable, str(WORKER), str(tiny_toml), str(tmp_path), str(KILLS)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["kills"]) == KILLS
    # The kills hit different phases of the runs; which ones depends on timing.
    assert len({kill["checkpoint"] for kill in report["kills"]}) > 1
    for kill in report["kills"]:
        assert kill["weights"] == report["weights"], kill
        assert kill["target"] == report["target"], kill


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("format", ["folder", "pool", "webdataset"])
def test_a_synthesis_killed_at_random_moments_ends_in_the_same_bytes(
    tiny_toml: Path, tmp_path: Path, format: str
) -> None:
    worker = WORKER.with_name("kill_synthesis_worker.py")
    line = [sys.executable, str(worker), str(tiny_toml), str(tmp_path), str(KILLS), format]
    result = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["different"] == []
    assert report["files"] > 10
    # Work survived from one kill to the next.
    assert len(set(report["left"])) > 2
