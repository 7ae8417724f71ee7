"""Savings of a rewrite other than time: multiply-adds, and the peak memory of one batch.

pytest benchmarks/generators/test_costs.py -s
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import networks
import pytest
import torch

from ptgm_fast import generators

# One batch of 32 in a separate process: its peak resident memory, minus that before the batch.
PEAK = """
import gc, resource, sys, torch
from networks import biggan_deep
from ptgm_fast import generators
torch.set_num_threads(2)
model = biggan_deep()
if sys.argv[1] == "optimized":
    model = generators.optimize(model, example=(torch.randn(2, 128), torch.eye(1000)[:2], 0.4), verify=False).module
gc.collect()
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
open("/proc/self/clear_refs", "w").write("5")  # the highest mark starts again
before = resident()
with torch.no_grad():
    model(torch.randn(32, 128), torch.eye(1000)[:32], 0.4)
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
print(int(peak) * 1024 - before)
"""


def test_multiply_adds() -> None:
    inputs = torch.randn(2, 128), torch.eye(1000)[:2], 0.4
    optimized = generators.optimize(networks.biggan_deep(), example=inputs, verify=False)
    before, after = optimized.multiply_adds
    print(f"BigGAN-deep 128: {before / 1e9:.2f} -> {after / 1e9:.2f} G multiply-adds an image")
    assert after < 0.7 * before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory() -> None:
    def peak(kind: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PEAK, kind],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    before, after = peak("original"), peak("optimized")
    print(
        f"BigGAN-deep 128, batch 32: {before / 1e6:,.0f} MB original, {after / 1e6:,.0f} MB rewritten"
    )
    assert after <= before
