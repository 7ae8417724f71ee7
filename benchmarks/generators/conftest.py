"""The networks of this folder can be imported by name, also by the processes that the benchmarks start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
