"""Install the packages that the machine lacks, from the wheels brought along, and this package, into a separate folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS, SITE = ROOT / "build" / "gpu-wheels", ROOT / "build" / "gpu-site"
DONE = SITE / ".done"


def install() -> Path:
    """Return SITE, ready to be put on PYTHONPATH. The machine's own packages are not changed; no network is needed.

    Raises subprocess.CalledProcessError if pip fails, and FileNotFoundError without wheels.
    """
    if DONE.is_file():
        return SITE
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if not wheels:
        raise FileNotFoundError(f"{WHEELS} has no wheels: run `make gpu-wheels` on a machine with a network")  # fmt: skip
    _pip(*wheels)
    # The build needs setuptools and pybind11, which are now in the folder.
    _pip("--no-build-isolation", str(ROOT))
    DONE.touch()
    return SITE


def _pip(*what: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade",
               "--no-cache-dir", "--target", str(SITE), *what]  # fmt: skip
    subprocess.run(command, check=True, env=environment(), cwd=ROOT)


def environment(site: Path | None = SITE) -> dict[str, str]:
    """This process's environment, with `site` first on Python's path; None: unchanged."""
    import os

    if site is None:
        return dict(os.environ)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}
