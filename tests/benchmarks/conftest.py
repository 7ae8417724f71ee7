"""The benchmarks' modules can be imported by name: they are tested like everything else."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks" / "end_to_end"), str(ROOT / "benchmarks")]


@pytest.fixture(scope="session")
def task():
    """The default task, as it is trained; nothing is validated, so that steps are all that a stage does."""
    pytest.importorskip("kornia")
    pytest.importorskip("mlxtend")
    from eager_loop import PLAIN

    from ptgm_fast.config import load_config
    from ptgm_fast.runs.task import build_task

    overrides = [*PLAIN, "pp.steps=20", "training.steps=20", "data.validation_per_class=0"]
    return build_task(load_config(None, overrides))
