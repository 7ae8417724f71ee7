"""The baselines of the benchmarks can be imported by name: they are tested like everything else."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS / "end_to_end"), str(BENCHMARKS)]
