"""Runs a synthesis in child processes and kills each at a random moment; prints whether the folders are the same.

python kill_synthesis_worker.py CONFIG.toml FOLDER KILLS FORMAT [FORMAT ...]. Forked as in kill_worker.py, so that the kills hit the work.
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

import torch

from ptgm_fast.config import load_config
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.sampling import pool

COUNT = 6000


def forked(
    toml: Path, out: Path, format: str, kill_after: float | None, count: int = COUNT
) -> float:
    """The seconds that a synthesis ran in a child process, which is killed after some time if given."""
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            synthesize(load_config(toml), count, out, format=format)
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        while time.perf_counter() - started < kill_after:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if kill_after is None and status != 0:
        raise SystemExit(f"the synthesis in {out} ended with status {status}")
    return time.perf_counter() - started


def digest(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in out.rglob("*")
        if p.is_file()
    }


def main() -> None:
    torch.set_num_threads(1)
    pool.SHARD_IMAGES = 128
    toml, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    reports = {format: killed(toml, folder / format, kills, format) for format in sys.argv[4:]}
    print(json.dumps(reports))


def killed(toml: Path, folder: Path, kills: int, format: str) -> dict[str, Any]:
    """The files of a whole synthesis, those that differ in a killed one, and what each kill left."""
    folder.mkdir()
    forked(toml, folder / "first", format, None)
    seconds = forked(toml, folder / "whole", format, None)
    idle = forked(toml, folder / "few", format, None, count=1)
    random.seed(0)
    left: list[int] = []
    for _ in range(kills):
        # Some during startup, most within an eighth of the work, so that it makes progress.
        moment = random.random() * (idle + max(seconds - idle, 0) / 8)
        forked(toml, folder / "killed", format, moment)
        left.append(len(list((folder / "killed").rglob("*"))))
    forked(toml, folder / "killed", format, None)
    whole, parts = digest(folder / "whole"), digest(folder / "killed")
    different = sorted(k for k in whole.keys() | parts.keys() if whole.get(k) != parts.get(k))
    return {"files": len(whole), "different": different, "left": left}


if __name__ == "__main__":
    main()
