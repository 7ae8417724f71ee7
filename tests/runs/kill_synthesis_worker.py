"""Runs a synthesis in child processes and kills each; prints whether the folders are the same.

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
from ptgm_fast.runs import formats
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.sampling import pool
from ptgm_fast.sampling.parts import MAKING

PART, PARTS = 128, 24
COUNT = PART * PARTS


def forked(toml: Path, out: Path, format: str, count: int = COUNT) -> int:
    """A child process that synthesizes."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            synthesize(load_config(toml), count, out, format=format)
            code = 0
        finally:
            os._exit(code)
    return pid


def finished(pid: int) -> float:
    """The seconds until the child has ended well."""
    started = time.perf_counter()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise SystemExit(f"a synthesis ended with status {status}")
    return time.perf_counter() - started


def parts_done(out: Path) -> int:
    return PARTS if (out / "manifest.json").exists() else len(list(out.glob(f"{MAKING}/0*.json")))


def killed(pid: int, out: Path, *, beyond: int, seconds: float) -> None:
    """Kill the child some time after more parts than `beyond` are done, if it has not ended by then."""
    ended = 0
    while not ended and parts_done(out) <= beyond:
        time.sleep(0.001)
        ended, _ = os.waitpid(pid, os.WNOHANG)
    if not ended:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def digest(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in out.rglob("*")
        if p.is_file()
    }


def main() -> None:
    torch.set_num_threads(1)
    pool.SHARD_IMAGES = formats.BATCH = PART
    toml, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    print(
        json.dumps(
            {format: report(toml, folder / format, kills, format) for format in sys.argv[4:]}
        )
    )


def report(toml: Path, folder: Path, kills: int, format: str) -> dict[str, Any]:
    """The files of a whole synthesis, those that differ in a killed one, and the parts done at each kill."""
    folder.mkdir()
    finished(forked(toml, folder / "first", format))
    seconds = finished(forked(toml, folder / "whole", format))
    startup = finished(forked(toml, folder / "few", format, count=1))
    a_part = max(seconds - startup, 0) / PARTS
    random.seed(0)
    out = folder / "killed"
    done: list[int] = []
    for number in range(kills):
        pid = forked(toml, out, format)
        # In turn: at any moment from the start, and once another part is done, so that all the work comes under the kills
        # however fast the machine is now.
        if number % 2 == 0:
            killed(pid, out, beyond=-1, seconds=random.random() * (startup + a_part))
        else:
            killed(pid, out, beyond=done[-1], seconds=random.random() * a_part)
        done.append(parts_done(out))
    finished(forked(toml, out, format))
    whole, parts = digest(folder / "whole"), digest(out)
    different = sorted(k for k in whole.keys() | parts.keys() if whole.get(k) != parts.get(k))
    return {"files": len(whole), "different": different, "done": done}


if __name__ == "__main__":
    main()
