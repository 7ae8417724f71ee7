"""Run a file of `check_*` functions in a process of its own, once, and report each as a test.

    INTERPRETED = isolated.checks("latents/interpreted.py", interpret=True)

    @pytest.mark.parametrize("check", INTERPRETED.names)
    def test_interpreted(check: str) -> None:
        INTERPRETED.run(check)

Run by hand, from tests/kernels:  python -m helpers.isolated latents/interpreted.py --interpret [check_name ...]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[1]
COMPILED = FOLDER.parents[1] / "build" / "triton"
TIMEOUT_SECONDS = 600


@dataclass
class Checks:
    """The checks of one file. Their process starts at the first `run` and runs all of them."""

    path: Path
    interpret: bool
    names: list[str]
    _failures: dict[str, str | None] | None = field(default=None, repr=False)
    _output: str = field(default="", repr=False)

    def run(self, name: str) -> None:
        """Fail with the check's own traceback if it failed in its process."""
        if self._failures is None:
            self._failures = self._start()
        if name not in self._failures:
            raise AssertionError(
                f"the process of {self.path.parent.name}/{self.path.name} ended before {name}:\n{self._output}"
            )
        if self._failures[name] is not None:
            raise AssertionError(
                f"{self.path.parent.name}/{self.path.name}::{name}\n{self._failures[name]}"
            )

    def _start(self) -> dict[str, str | None]:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.jsonl"
            command = [
                sys.executable,
                "-m",
                "helpers.isolated",
                str(self.path),
                "--results",
                str(results),
            ]
            # Kernels are compiled once for all tests; Triton's key is the source with its version, target and options.
            env = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
                "TRITON_CACHE_DIR": str(COMPILED),
            }
            env.pop("TRITON_INTERPRET", None)
            if self.interpret:
                command.append("--interpret")
            try:
                done = subprocess.run(
                    command,
                    env=env,
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT_SECONDS,
                    check=False,
                )
                self._output = f"exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}"
            except subprocess.TimeoutExpired:
                self._output = f"still running after {TIMEOUT_SECONDS} s"
            lines = results.read_text().splitlines() if results.exists() else []
        return dict(json.loads(line) for line in lines)


def checks(path: str, *, interpret: bool) -> Checks:
    """The checks of a file named relative to tests/kernels; read from its source, nothing is imported."""
    full = FOLDER / path
    functions = [n for n in ast.parse(full.read_text()).body if isinstance(n, ast.FunctionDef)]
    names = [f.name for f in functions if f.name.startswith("check_")]
    assert names, f"{full} has no function named check_*"
    return Checks(full, interpret, names)


def _main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.interpret:
        # Read when triton is imported, by this process's checks.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("checks", options.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Triton looks up a kernel's globals through its module.
    sys.modules["checks"] = module
    failed = 0
    with contextlib.ExitStack() as stack:
        if options.interpret:
            from helpers import interpreter

            stack.enter_context(interpreter.patch())
        spec.loader.exec_module(module)
        names = options.names or [n for n in vars(module) if n.startswith("check_")]
        for name in names:
            start, failure = time.perf_counter(), None
            try:
                getattr(module, name)()
            except Exception:
                failure = traceback.format_exc()
                failed += 1
            if options.results is None:
                print(
                    f"{name}: {failure or 'passed'} ({time.perf_counter() - start:.2f} s)",
                    flush=True,
                )
                continue
            with options.results.open("a") as file:
                file.write(json.dumps([name, failure]) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(_main())
