"""Part 2: `pytest -m gpu`, one process per file: an illegal access breaks only its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from device import ROOT
from records import Found, Job

job = Job(__doc__ or "")
# Runs alone, since it measures times.
TIMED = "test_gpu_times.py"
# The files that a dry run collects and skips.
DRY = ("test_gpu_sizes.py",)


def files() -> list[Path]:
    """The files with GPU tests; the timed one last."""
    found = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text("utf-8")]
    if job.dry:
        found = [p for p in found if p.name in DRY]
    return sorted(found, key=lambda p: (p.name == TIMED, p))


def junit_of(path: Path, folder: Path) -> ET.Element:
    """Run a file's GPU tests and return pytest's JUnit report."""
    report = folder / f"{path.stem}.xml"
    command = [sys.executable, "-P", "-m", "pytest", str(path.relative_to(ROOT)), "-m", "gpu", "-q",
               "--tb=short", f"--junitxml={report}"]  # fmt: skip
    limit = max(10.0, job.seconds_left - 10)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit,
                              env={**os.environ, "OMP_NUM_THREADS": "2"})  # fmt: skip
        ended, output = f"exit code {done.returncode}", done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        ended, output = f"still running after {limit:.0f} s", str(error.stdout or "")
    print(f"--- {path.name}: {ended}\n{output[-6000:]}", flush=True)
    if not report.is_file():
        raise AssertionError(f"{ended}, before pytest could say what it found")
    return ET.parse(report).getroot()


def outcome(path: Path, folder: Path, whole: ET.Element) -> Found:
    suites = list(junit_of(path, folder).iter("testsuite"))
    whole.extend(suites)
    cases = [case for suite in suites for case in suite.iter("testcase")]
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    facts = {"tests": len(cases), "failed": [c.get("name") for c in failed], "skipped": skipped}
    assert cases, "no test was collected"
    if failed:
        (first,) = [e for e in failed[0] if e.tag in ("failure", "error")][:1]
        raise AssertionError(
            f"{len(failed)} of {len(cases)} fail, first {failed[0].get('name')}: {first.get('message', '')[:120]}"
        )
    return f"{len(cases) - skipped} pass, {skipped} are skipped", facts


whole = ET.Element("testsuites")
with TemporaryDirectory() as name, ThreadPoolExecutor(1 if job.dry else 4) as pool:
    folder = Path(name)
    *beside_each_other, last = files()

    def run(path: Path) -> None:
        job.check(path.stem, partial(outcome, path, folder, whole), needs=20)

    list(pool.map(run, beside_each_other))
    run(last)
ET.ElementTree(whole).write(job.out / "part-2-junit.xml", encoding="utf-8", xml_declaration=True)
