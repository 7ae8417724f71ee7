"""What a GPU has to say about this project, in steps of at most ten minutes.

    make gpu-wheels                                    # once, where there is a network
    python scripts/gpu_check --part 1 2 3 --out OUT    # on the GPU's machine: the parts that matter most
    python scripts/gpu_check --page OUT                # the last page again, of all files that are in OUT

Each part writes OUT/part-N.jsonl, a line a check, and what its processes printed, OUT/part-N.log; OUT/page.txt says it all in
forty lines. A check that fails, a process that dies and a part that runs out of time stop nothing else. docs/gpu.md
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
    """One part in a process of its own; a part that was run before is written anew."""
    path_of(options.out, part).unlink(missing_ok=True)
    print(f"== part {part}, {SECTIONS[part]}", flush=True)
    command = [sys.executable, str(HERE / f"{JOBS[part]}.py"), "--out", str(options.out), "--part", str(part),
               "--seconds", str(options.seconds), "--fail", options.fail]  # fmt: skip
    command += ["--dry"] if options.dry else []
    began = time.monotonic()
    with (options.out / f"part-{part}.log").open("w") as log:
        try:
            # Checks end by themselves before that; this is for one that hangs.
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
    parser.add_argument("--part", type=int, nargs="+", choices=JOBS, default=list(JOBS), help="which, in this order; all by default")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check", help="folder of the files")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=540.0, help="of each part, at most")
    parser.add_argument("--page", type=Path, metavar="OUT", help="only write the last page of what is in this folder")  # fmt: skip
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU, to try the script itself")  # fmt: skip
    parser.add_argument("--no-install", action="store_true", help="use the packages that Python finds as it is")  # fmt: skip
    parser.add_argument("--fail", default="", metavar="CHECK", help="let this check fail, to see that the rest goes on")  # fmt: skip
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
        # Installing takes of the first part's time, so that a command's limit holds.
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
