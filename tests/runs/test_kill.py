"""SIGKILL at any moment: the resumed run ends with bitwise the weights, or images, of an uninterrupted one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "kill_worker.py"
# Of the run, one in each fifth.
RUN_KILLS, SYNTHESIS_KILLS = 5, 8


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_run_killed_at_random_moments_ends_with_the_same_weights(
    tiny_toml: Path, tmp_path: Path
) -> None:
    line = [sys.executable, str(WORKER), str(tiny_toml), str(tmp_path), str(RUN_KILLS)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["kills"]) == RUN_KILLS
    # The kills hit runs in different phases: which ones exactly is up to the machine's clock.
    assert len({kill["checkpoint"] for kill in report["kills"]}) > 1
    for kill in report["kills"]:
        assert kill["weights"] == report["weights"], kill
        assert kill["target"] == report["target"], kill


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_synthesis_killed_again_and_again_ends_in_the_same_bytes(
    tiny_toml: Path, tmp_path: Path
) -> None:
    """In each format; one process imports for all."""
    formats = ("folder", "pool", "webdataset")
    worker = WORKER.with_name("kill_synthesis_worker.py")
    kills = str(SYNTHESIS_KILLS)
    line = [sys.executable, str(worker), str(tiny_toml), str(tmp_path), kills, *formats]
    result = subprocess.run(line, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    reports = json.loads(result.stdout)
    assert reports.keys() == set(formats)
    for format, report in reports.items():
        assert report["different"] == [], format
        assert report["files"] > 10, format
        # No kill loses a part that was done.
        assert report["done"] == sorted(report["done"]), format
        assert len(set(report["done"])) > 2, format
