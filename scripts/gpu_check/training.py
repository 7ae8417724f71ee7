"""Part 3: the default training as users start it, its schedules against each other, and consumers that read ahead."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from device import DEVICE, ON_GPU, ROOT, beside, synchronize
from records import Found, Job, NotHere
from torch import Tensor

beside("tests/training", "tests/runs", "tests")

from conftest import write_blobs, write_pair  # noqa: E402
from host_sync import watched  # noqa: E402

from on_disk import ready, same, stop_after, weights  # noqa: E402
from ptgm_fast import FastSampler, generators  # noqa: E402
from ptgm_fast.config import load_config  # noqa: E402
from ptgm_fast.errors import UserError  # noqa: E402
from ptgm_fast.runs.task import build_task  # noqa: E402
from ptgm_fast.runs.train import make_stage, make_stages, run_stages, train  # noqa: E402
from ptgm_fast.training.context import Context, Interrupted  # noqa: E402
from ptgm_fast.training.loop import fit  # noqa: E402

job = Job(__doc__ or "")
temporary = TemporaryDirectory()
FOLDER = Path(temporary.name)
# All images are fresh, so that synthesis is part of each step; the loop itself never synchronizes with the device.
STEPS = {"pp": 6, "training": 6} if job.dry else {"pp": 150, "training": 100}
FRESH = ["synthesis.images=fresh", "training.validate_every=0",
         *(f"{stage}.{what}={steps}" for stage, steps in STEPS.items() for what in ("steps", "log_every")),
         # Tracing takes longer than all of a dry run's steps; the default training tries the rewritten generator.
         *(["source.optimize=false"] if job.dry else [])]  # fmt: skip
SCHEDULES = {
    "never": ["engine.overlap=never"],
    "ahead": ["engine.overlap=always"],
    "captured": ["engine.overlap=always", "engine.capture=true"],
}


@cache
def tiny() -> list[str]:
    """Settings of a tiny task for a dry run; none otherwise."""
    if not job.dry:
        return []
    pair, blobs = write_pair(FOLDER / "pair"), write_blobs(FOLDER / "blobs.npz")
    sizes = ["pp.batch_size=16", "training.batch_size=8", "p_ssl.batch_size=8"]
    labels = [f"data.{part}_per_class=5" for part in ("labels", "validation", "test")]
    return [f"data.images=npz:{blobs}", f"source.generator={pair}", *sizes, *labels]


def command(*settings: str, out: Path) -> float:
    """Run `ptgm-fast train` in its own process; return its seconds."""
    call = [sys.executable, "-P", "-m", "ptgm_fast", "train", "--out", str(out)]
    for setting in [*tiny(), *settings]:
        call += ["--set", setting]
    began = time.monotonic()
    limit = max(20.0, job.seconds_left)
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    print(done.stdout[-3000:], done.stderr[-3000:])
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr.strip()[-160:]}")
    return time.monotonic() - began


def default_train() -> Found:
    steps = ["pp.steps=6", "training.steps=6"] if job.dry else []
    out = FOLDER / "default"
    seconds = command(*steps, out=out)
    summary = json.loads((out / "summary.json").read_text())
    accuracy = 100 * summary["target"]["test_accuracy"]
    rewrite = summary["source"]["optimized"]
    stages = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    text = ", ".join(f"{name} {value:.1f} s" for name, value in stages.items())
    apart = "kept as it is" if rewrite is None else f"rewritten, difference {rewrite['difference']}"
    facts = {"seconds": seconds, "accuracy": accuracy, "stages": stages, "rewrite": rewrite}
    return f"{accuracy:.2f} % in {seconds:.0f} s ({text}); generator {apart}", facts


def scheduled(name: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights after training with a schedule, and each stage's seconds per step, without its first tenth."""
    times: dict[str, list[float]] = {}

    def on_step(stage: str, step: int, steps: int) -> None:
        if step in (1 + steps // 10, steps):
            synchronize()
            times.setdefault(stage, []).append(time.perf_counter() / (steps - 1 - steps // 10))

    task = build_task(load_config(None, [*tiny(), *FRESH, *SCHEDULES[name]]))
    network = task.new_network()
    run_stages(make_stages(task, network), Context(on_step=on_step))
    return network.export_state(), {k: last - first for k, (first, last) in times.items()}


@cache
def plain() -> tuple[dict[str, Tensor], dict[str, float]]:
    return scheduled("never")


def without_overlap() -> Found:
    _, times = plain()
    return in_ms(times), {"seconds_a_step": times}


def schedule(name: str) -> Callable[[], Found]:
    def compared() -> Found:
        try:
            made, times = scheduled(name)
        except UserError as error:
            if ON_GPU:
                raise
            raise NotHere(str(error).splitlines()[0]) from error
        expected, before = plain()
        assert same(made, expected), "the weights differ from those without overlap"
        gains = {stage: before[stage] / times[stage] for stage in times}
        text = ", ".join(f"{stage} {gain:.2f}x" for stage, gain in gains.items())
        facts = {"seconds_a_step": times, "gain": gains}
        return f"equal weights; {in_ms(times)}; as fast as never: {text}", facts

    return compared


def in_ms(times: dict[str, float]) -> str:
    return ", ".join(f"{stage} {1e3 * value:.2f} ms a step" for stage, value in times.items())


def no_host_sync() -> Found:
    """Run every step but the first and the last with torch's sync debug mode set to raise."""
    num = 0
    for name, settings in SCHEDULES.items():
        if name != "never" and not ON_GPU:
            continue
        for stage in ("pp", "p-ssl"):
            task = build_task(load_config(None, [*tiny(), *FRESH, *settings]))
            with watched(torch.cuda.set_sync_debug_mode if ON_GPU else lambda mode: None) as on:
                fit(make_stage(stage, task, task.new_network()), Context(on_step=on))
            num += 1
    return f"none in {num} loops under set_sync_debug_mode('error')"


def replays() -> Found:
    """A stage's captured batches against launched ones, at step numbers that no capture saw."""
    if not ON_GPU:
        raise NotHere("a CPU has no CUDA graphs")
    from torch.utils._pytree import tree_leaves

    from ptgm_fast.training.prefetch import replayed

    for name in ("pp", "p-ssl"):
        task = build_task(load_config(None, [*tiny(), *FRESH]))
        stage = ready(make_stage(name, task, task.new_network()))
        captured = replayed(stage)
        for step in (0, 1, 7, 1000, 1):
            for one, two in zip(tree_leaves(captured(step)), tree_leaves(stage.make_batch(step)), strict=True):  # fmt: skip
                assert one is two is None or torch.equal(one, two), f"{name}, step {step}"
    return "equal bits at steps 0, 1, 7, 1000, 1 of both stages"


def reading_ahead() -> Found:
    generator = generators.load("letters").to(DEVICE)
    served = []
    for overlap in ("never", "always"):
        with FastSampler(generator, batch_size=48, views="weak", overlap=overlap, depth=2) as made:  # type: ignore[arg-type]
            served.append(list(made.uniform(12)))
    for one, two in zip(*served, strict=True):
        assert torch.equal(one.images, two.images), "a batch was written over"
        assert torch.equal(one.labels, two.labels), "labels were written over"
    return "list(...) of 12 batches made ahead has the bits of batches made one by one"


def resumed() -> Found:
    config = load_config(None, [*tiny(), *FRESH, "pp.checkpoint_every=3"])
    whole, parts = FOLDER / "whole", FOLDER / "parts"
    train(config, whole)
    try:
        train(config, parts, context=stop_after("p-ssl", 4))
    except Interrupted:
        train(config, parts, resume=True)
    assert same(weights(whole), weights(parts)), "the weights differ"
    return "a run stopped and resumed has the weights of one that was not"


Check = tuple[str, Callable[[], Any]]
checks: list[Check] = [
    ("default train", default_train),
    ("overlap never", without_overlap),
    ("overlap ahead", schedule("ahead")),
    ("captured", schedule("captured")),
    ("replays", replays),
    ("no host sync", no_host_sync),
    ("reading ahead", reading_ahead),
    ("resume", resumed),
]
for title, call in checks:
    job.check(title, call, needs=15)
temporary.cleanup()
