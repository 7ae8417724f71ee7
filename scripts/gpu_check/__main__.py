"""Check and measure this project on a GPU, in parts of at most ten minutes each.

    make gpu-wheels                                    # once, on a machine with a network
    python scripts/gpu_check --part 1 2 3 --out OUT    # on the GPU's machine: the most important parts
    python scripts/gpu_check --page OUT                # write the summary page again, from all files in OUT

Each part writes OUT/part-N.jsonl, one line per check, and its processes' output, OUT/part-N.log; OUT/page.txt is a summary of
at most forty lines. A failed check, a dead process or a part that runs out of time does not stop the rest. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from installing import ROOT, environment, install
from page import SECTIONS, page
from records import Record, append, path_of

HERE = Path(__file__).resolve().parent
JOBS = {
    1: "environment",
    2: "suite",
    3: "training",
    4: "generator",
    5: "stages",
    6: "bandwidth",
    7: "sanitizer",
}


def run(part: int, options: argparse.Namespace, site: Path | None) -> None:
    """Run one part in its own process; the results of an earlier run of the part are replaced."""
    path_of(options.out, part).unlink(missing_ok=True)
    print(f"== part {part}, {SECTIONS[part]}", flush=True)
    command = [sys.executable, str(HERE / f"{JOBS[part]}.py"), "--out", str(options.out), "--part", str(part),
               "--seconds", str(options.seconds), "--fail", options.fail]  # fmt: skip
    command += ["--dry"] if options.dry else []
    began = time.monotonic()
    with (options.out / f"part-{part}.log").open("w") as log:
        try:
            # Checks normally end before that; this is for one that hangs.
            limit = options.seconds + 30
            done = subprocess.run(command, cwd=ROOT, env=environment(site), stdout=log, stderr=log, timeout=limit)  # fmt: skip
            ended = "" if done.returncode == 0 else f"the process ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"still running after {limit:.0f} s, and ended"
    if ended:
        seconds = round(time.monotonic() - began, 1)
        append(options.out, Record(part, "the whole part", False, ended, {}, seconds))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", type=int, nargs="+", choices=JOBS, default=list(JOBS), help="parts to run, in this order (default: all)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder for the results")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=540.0, help="time limit of each part")
    parser.add_argument("--page", type=Path, metavar="OUT", help="only write the summary page of the results in this folder")  # fmt: skip
    parser.add_argument("--dry", action="store_true", help="use tiny sizes on a CPU, to test the script itself")  # fmt: skip
    parser.add_argument("--no-install", action="store_true", help="use the packages that are already installed")  # fmt: skip
    parser.add_argument("--fail", default="", metavar="CHECK", help="make this check fail, to test that the rest still runs")  # fmt: skip
    options = parser.parse_args()
    out: Path = (options.page or options.out).resolve()
    options.out = out
    if options.page is None:
        out.mkdir(parents=True, exist_ok=True)
        site, began = None, time.monotonic()
        if not (options.dry or options.no_install):
            try:
                site = install()
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"gpu_check: {error}", file=sys.stderr)
                return 2
        # Installing counts towards the first part's time, so that a limit on the whole command holds.
        whole, options.seconds = options.seconds, options.seconds - (time.monotonic() - began)
        for part in options.part:
            run(part, options, site)
            options.seconds = whole
            (out / "page.txt").write_text(page(out), encoding="utf-8")
    text = page(out)
    (out / "page.txt").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
