"""Print the oldest versions that pyproject.toml claims, as pip constraints: `make oldest` installs and tests them.

python scripts/oldest.py > constraints.txt
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def oldest(text: str) -> list[str]:
    """NAME==VERSION for every requirement `NAME>=VERSION` in a pyproject.toml, each once."""
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"].values()
    claimed = [
        *project["dependencies"],
        *(requirement for extra in extras for requirement in extra),
    ]
    found = (re.match(r"([\w-]+)>=([\w.]+)", requirement) for requirement in claimed)
    return sorted({f"{match[1]}=={match[2]}" for match in found if match})


if __name__ == "__main__":
    print("\n".join(oldest((ROOT / "pyproject.toml").read_text(encoding="utf-8"))))
