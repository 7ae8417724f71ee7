"""The benchmarks' modules and their scripts can be imported by name: they are tested like everything else."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "end_to_end"), str(ROOT / "benchmarks"), str(ROOT / "scripts")]  # fmt: skip
