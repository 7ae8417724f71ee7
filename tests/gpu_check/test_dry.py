"""The whole of `scripts/gpu_check` without a GPU: every part ends and writes, whatever fails in it; the page says it all."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"
PARTS = range(1, 8)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_check_{name}", SCRIPT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT))
    sys.modules[spec.name] = made  # dataclasses look their module up
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(SCRIPT))
    return made


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A worker of pytest-xdist hands its name down, and pytest-benchmark times nothing in such a worker.
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**own, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def records(out: Path, part: int) -> list[dict]:
    return [json.loads(line) for line in (out / f"part-{part}.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_part_ends_and_the_page_says_it_all(tmp_path: Path) -> None:
    """One check is made to fail, in the middle of a part."""
    done = gpu_check("--dry", "--out", str(tmp_path), "--fail", "overlap ahead")
    assert done.returncode == 0, done.stderr
    failed = []
    for part in PARTS:
        found = records(tmp_path, part)
        assert any(r["ok"] for r in found), f"part {part}:\n{(tmp_path / f'part-{part}.log').read_text()}"  # fmt: skip
        failed += [(part, r["name"], r["text"]) for r in found if r["ok"] is False]
    assert failed == [(3, "overlap ahead", "AssertionError: made to fail by --fail")]
    names = [r["name"] for r in records(tmp_path, 3)]
    assert names[names.index("overlap ahead") + 1 :] == [
        "captured", "replays", "no host sync", "reading ahead", "resume"
    ]  # fmt: skip
    assert (tmp_path / "part-2-junit.xml").read_text().count("<testcase") > 10
    assert json.loads((tmp_path / "part-6-ops.json").read_text())["benchmarks"]
    text = (tmp_path / "page.txt").read_text()
    assert text in done.stdout
    assert len(text.splitlines()) <= 40
    for part, title in module("page").SECTIONS.items():
        assert f"\n{part}. {title}: " in text
    assert "FAIL overlap ahead: AssertionError: made to fail by --fail" in text
    for what in ("overlap", "capture", "compile", "precision", "deterministic"):
        assert what in text.split("defaults that these figures ask for")[1]


def test_the_page_has_forty_lines_however_much_failed(tmp_path: Path) -> None:
    kept = module("records")
    for part in PARTS:
        for i in range(30):
            record = kept.Record(part, f"check {i}", False, "x" * 300)
            kept.append(tmp_path, record)
    text = module("page").page(tmp_path)
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 160
    for part, title in module("page").SECTIONS.items():
        assert f"{part}. {title}: 0 ok, 30 failed, 0 not tried" in text
    # No section's failures take the lines of another's.
    assert all(text.count(f"FAIL check {i}:") == 7 for i in range(2))


def test_defaults_follow_the_figures(tmp_path: Path) -> None:
    kept, page = module("records"), module("page")

    def said(**seconds: float) -> str:
        (tmp_path / "part-5.jsonl").unlink(missing_ok=True)
        for name, value in seconds.items():
            title = f"p-ssl, {name.replace('_', ' ')}"
            kept.append(tmp_path, kept.Record(5, title, True, "", {"seconds": value}))
        return page.page(tmp_path)

    assert "engine.overlap: never ('p-ssl, overlap ahead' 1.02x" in said(overlap_never=1.02, overlap_ahead=1.0)  # fmt: skip
    assert "engine.overlap: ahead, as it is on GPUs ('p-ssl, overlap ahead' 1.50x" in said(overlap_never=1.5, overlap_ahead=1.0)  # fmt: skip
    assert "engine.capture: true ('p-ssl, captured' 2.00x" in said(overlap_ahead=1.0, captured=0.5)
    assert "engine.capture: not known, 'p-ssl, captured' has no figure" in said(overlap_ahead=1.0)


def test_a_process_that_dies_is_a_failure_of_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = module("__main__")
    dies = tmp_path / "dies.py"
    dies.write_text("import os; os.abort()")
    monkeypatch.setattr(main, "HERE", tmp_path)
    monkeypatch.setitem(main.JOBS, 7, "dies")
    options = SimpleNamespace(out=tmp_path, seconds=60.0, fail="", dry=True)
    main.run(7, options, None)
    (record,) = records(tmp_path, 7)
    assert (record["name"], record["ok"]) == ("the whole part", False)
    assert "ended with -6" in record["text"]


def test_without_wheels_one_line_says_what_to_do(tmp_path: Path) -> None:
    installing = module("installing")
    installing.WHEELS, installing.DONE = tmp_path / "wheels", tmp_path / "none"
    with pytest.raises(FileNotFoundError, match="make gpu-wheels"):
        installing.install()


def requirements() -> dict[str, str]:
    """By name, what pyproject.toml asks for at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {re.split(r"[<>=]", text)[0]: text for text in project["dependencies"]}


def test_the_wheels_are_all_that_the_package_needs_beside_what_is_there() -> None:
    lines = (SCRIPT / "wheels.txt").read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if not line.startswith("#")} | {"pydantic"}
    there = {"torch", "triton", "numpy", "safetensors", "pillow"}
    assert requirements().keys() - there <= listed
    assert not listed & there


def test_every_requirement_claims_an_oldest_version() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "oldest.py")], capture_output=True, text=True, check=True)  # fmt: skip
    found = dict(line.split("==") for line in done.stdout.splitlines())
    assert requirements().keys() <= found.keys()
    for name, text in requirements().items():
        assert f"{name}>={found[name]}" in text
