"""Part 7: the smallest kernel tests under compute-sanitizer, without torch's caching allocator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable

from device import ON_GPU, ROOT
from records import Found, Job, NotHere

job = Job(__doc__ or "")
TOOLS = ("memcheck", "racecheck", "initcheck")
TESTS = "tests/kernels/test_gpu_sizes.py"


def under(tool: str) -> Callable[[], Found]:
    def watched() -> Found:
        if ON_GPU and not shutil.which("compute-sanitizer"):
            raise NotHere("there is no compute-sanitizer")
        sanitizer = ["compute-sanitizer", "--tool", tool, "--target-processes", "all"] if ON_GPU else []  # fmt: skip
        which = "gpu" if ON_GPU else "not gpu"
        command = [*sanitizer, sys.executable, "-P", "-m", "pytest", TESTS, "-m", which, "-k", "of_one", "-q"]  # fmt: skip
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(20.0, job.seconds_left - 5),
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        print(done.stdout[-6000:], done.stderr[-3000:])
        text = done.stdout + done.stderr
        passed = (re.findall(r"\d+ passed", text) or ["no test passed"])[-1]
        if not ON_GPU:
            assert done.returncode == 0, passed
            return f"{passed}, without the tool"
        counts = re.findall(r"SUMMARY: (\d+) (?:error|hazard)", text)
        assert counts, f"the tool gave no summary; {passed}, exit code {done.returncode}"
        found = sum(map(int, counts))
        assert found == 0, f"{found} errors or hazards"
        assert done.returncode == 0, passed
        return f"nothing found; {passed}"

    return watched


for name in TOOLS[:1] if job.dry else TOOLS:
    job.check(name, under(name), needs=60 if ON_GPU else 5)
