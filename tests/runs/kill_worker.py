"""Runs the tiny task in child processes and kills each at a random moment; prints the results of the resumed runs.

python kill_worker.py CONFIG.toml FOLDER KILLS. The processes are forked from one that has imported everything, so that
the kills hit the run and not its imports.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import torch._dynamo

from ptgm_fast.config import load_config
from ptgm_fast.errors import UserError
from ptgm_fast.runs.train import train

OFTEN = (
    "pp.checkpoint_every=1",
    "training.checkpoint_every=1",
    "pp.log_every=1",
    "training.log_every=1",
)


def run(toml: Path, out: Path) -> None:
    """Start or resume the run, as a user would who finds it killed."""
    config = load_config(toml, list(OFTEN))
    try:
        train(config, out, resume=True)
    except UserError as error:
        if "no run to resume" not in str(error):
            raise
        train(config, out)


def forked(toml: Path, out: Path) -> int:
    """A child process that starts or resumes the run."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(toml, out)
            code = 0
        finally:
            os._exit(code)
    return pid


def finished(pid: int) -> float:
    """The seconds until the child has ended well."""
    started = time.perf_counter()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit(f"a run ended with status {status}")
    return time.perf_counter() - started


def metrics(out: Path) -> int:
    """How far the run has got: the lines of its metrics.jsonl."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(out: Path) -> dict[str, Any]:
    summary = json.loads((out / "summary.json").read_text())
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    return {"weights": weights, "target": summary["target"]}


def main() -> None:
    torch.set_num_threads(1)
    toml, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # The first run also loads things lazily; the second one's time is that of all later runs.
    finished(forked(toml, folder / "first"))
    seconds, lines = finished(forked(toml, folder / "whole")), metrics(folder / "whole")
    random.seed(0)
    report: dict[str, Any] = {**outcome(folder / "whole"), "kills": []}
    for number in range(kills):
        out = folder / f"killed-{number}"
        # One random moment in each part of the run, so that all of it is covered. A part begins by what the run has logged:
        # the clock would say little on a machine that others use.
        pid, moment = forked(toml, out), random.random() * seconds / kills
        ended = 0
        while not ended and metrics(out) < lines * number // kills:
            time.sleep(0.001)
            ended, _ = os.waitpid(pid, os.WNOHANG)
        if not ended:
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        checkpoint = None
        for name in ("checkpoint.pt", "checkpoint.1.pt"):
            if checkpoint is None and (out / name).exists():
                checkpoint = torch.load(out / name, weights_only=True)["stage"]
        finished(forked(toml, out))
        report["kills"].append({"checkpoint": checkpoint, **outcome(out)})
    print(json.dumps(report))


if __name__ == "__main__":
    main()
