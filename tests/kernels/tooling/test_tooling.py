"""The tools in tests/kernels/helpers catch the faults they are meant to catch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from helpers import isolated

INTERPRETED = isolated.checks("tooling/interpreted.py", interpret=True)
COMPILED = isolated.checks("tooling/compiled.py", interpret=False)


@pytest.mark.parametrize("check", INTERPRETED.names)
def test_interpreted(check: str) -> None:
    INTERPRETED.run(check)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPILED.names)
def test_compiled(check: str) -> None:
    COMPILED.run(check)


def test_failures_and_deaths_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(
        "import os\n"
        "def check_passes(): pass\n"
        "def check_fails(): assert 1 + 1 == 3, 'planted'\n"
        "def check_dies(): os._exit(3)\n"
        "def check_after(): pass\n"
    )
    planted = isolated.checks(str(path), interpret=False)
    planted.run("check_passes")
    with pytest.raises(AssertionError, match="planted"):
        planted.run("check_fails")
    for name in ("check_dies", "check_after"):
        with pytest.raises(AssertionError, match="exit code 3"):
            planted.run(name)


def test_a_file_without_checks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(AssertionError, match="no function named check_"):
        isolated.checks(str(tmp_path / "empty.py"), interpret=False)


@pytest.mark.slow
def test_the_page_of_gpu_kernels_is_up_to_date() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "benchmarks" / "README.md").read_text()
    if f"Compiled by Triton {triton.__version__}." not in page:
        pytest.skip("the page was written with another version of Triton, whose registers differ")
    done = subprocess.run(
        [sys.executable, "-c", "import write_gpu_model; print(write_gpu_model.table(), end='')"],
        cwd=root / "scripts",
        env={**os.environ, "TRITON_CACHE_DIR": str(isolated.COMPILED)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout in page, "run python scripts/write_gpu_model.py"
