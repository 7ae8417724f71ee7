"""The packaged wheel works outside the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_wheel_is_complete_and_runs_away_from_the_checkout(
    tmp_path: Path, tiny_toml: Path
) -> None:
    # Build a copy: in the checkout, build/ and egg-info would be left behind, and existing ones would be packaged.
    subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", ROOT, tmp_path / "src"], check=True
    )
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--outdir",
        tmp_path / "dist",
        tmp_path / "src",
    ]
    # Without compiler optimization: only the contents matter here, not speed.
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nexec "${REAL_CXX:-c++}" "$@" -O0 -g0\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CC": str(compiler), "CXX": str(compiler)}
    environment["REAL_CXX"] = os.environ.get("CXX", "c++")
    subprocess.run(build, check=True, capture_output=True, timeout=600, env=environment)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "ptgm_fast", "kernels"],
        cwd=tmp_path / "src",
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    expected = {f"ptgm_fast/{f}" if f.startswith("kernels/") else f for f in tracked}
    assert expected <= packed, f"missing from the wheel: {sorted(expected - packed)}"
    assert not any(name.startswith(("tests/", "kernels/", "benchmarks/")) for name in packed)

    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    # The dependencies of the running environment, without its editable install of this project.
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    ours = next(p for p in map(Path, sys.path) if (p / "torch").is_dir())
    (site / "dependencies.pth").write_text(f"{ours}\n")
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    run = [tmp_path / "venv" / "bin" / "ptgm-fast", "train", tiny_toml, "--out", tmp_path / "run"]
    subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "run" / "summary.json").is_file()
    # The extension is there, and an op gives what its reference gives; as where wheels are released.
    script = "import runpy, sys, ptgm_fast.kernels as k; print(k.__file__); runpy.run_path(sys.argv[1], run_name='__main__')"
    tried = subprocess.run(
        [python, "-c", script, ROOT / "scripts" / "try_wheel.py"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(site) in tried
    assert "the wheel is complete" in tried


def test_bundled_assets_are_small() -> None:
    weights = list((ROOT / "ptgm_fast" / "assets" / "letters").glob("*.safetensors"))
    assert len(weights) == 2
    assert sum(p.stat().st_size for p in weights) < 3_000_000


def test_the_settings_page_is_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import write_options; print(write_options.page(), end='')"],
        cwd=ROOT / "scripts",
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == (ROOT / "docs" / "options.md").read_text(), (
        "run python scripts/write_options.py"
    )
