"""Part 5: training steps at batch 256: the target network, the source classifier, whole stages with and without overlap."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from device import DEVICE, ON_GPU, peak_gib, precision, seconds, synchronize
from generator import folder_of
from records import Found, Job, NotHere
from torch import nn

from ptgm_fast import models
from ptgm_fast.config import load_config
from ptgm_fast.errors import UserError
from ptgm_fast.models import save_weights
from ptgm_fast.runs.task import Task, build_task
from ptgm_fast.runs.train import make_stage
from ptgm_fast.training.context import Context
from ptgm_fast.training.loop import fit

job = Job(__doc__ or "")
temporary = TemporaryDirectory()
FOLDER = Path(temporary.name)
SIDE, BATCH, CLASSES = (8, 4, 3) if job.dry else (128, 256, 100)
SOURCE_CLASSES = 6 if job.dry else 1000
NETWORK = "ptgm:cnn-small" if job.dry else "torchvision:resnet50"
STEPS = 6 if job.dry else 25


def network(classes: int) -> nn.Module:
    torch.manual_seed(0)
    made = models.build(NETWORK, num_classes=classes, channels=3, image_size=SIDE)
    return made.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def images() -> torch.Tensor:
    made = torch.randn(BATCH, 3, SIDE, SIDE, device=DEVICE)
    return made.contiguous(memory_format=torch.channels_last)


def rated(each: float, peak: float) -> Found:
    facts = {"seconds": each, "images_per_second": BATCH / each, "peak_gib": peak}
    return f"{1e3 * each:.2f} ms, {BATCH / each:,.0f} images/s, {peak:.1f} GiB", facts


def target_step(name: str, compiled: bool) -> Callable[[], Found]:
    """Forward, backward and SGD."""

    def timed() -> Found:
        if compiled:
            torch.compiler.reset()
        module = network(CLASSES).train()
        call = torch.compile(module, dynamic=False) if compiled else module
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        inputs, labels = images(), torch.arange(BATCH, device=DEVICE) % CLASSES

        def step() -> None:
            with precision(name):
                loss = F.cross_entropy(call(inputs).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return rated(seconds(step), peak_gib(step))

    return timed


def source_classifier(name: str) -> Callable[[], Found]:
    @torch.no_grad()
    def timed() -> Found:
        module, inputs = network(SOURCE_CLASSES).eval(), images()
        with precision(name):
            return rated(seconds(lambda: module(inputs)), peak_gib(lambda: module(inputs)))

    return timed


@cache
def settings() -> list[str]:
    """A task of random images, a BigGAN-deep and a classifier with random weights."""
    rng = np.random.default_rng(0)
    per_class = 4
    labels = np.repeat(np.arange(CLASSES), per_class)
    pixels = rng.integers(0, 256, (len(labels), SIDE, SIDE, 3)).astype(np.uint8)
    np.savez(FOLDER / "images.npz", x=pixels, y=labels)
    save_weights(network(SOURCE_CLASSES), FOLDER / "classifier.safetensors")
    generator = folder_of(FOLDER / "generator", job.dry)
    sizes = [f"{stage}.{what}={value}" for stage in ("pp", "training")
             for what, value in (("steps", STEPS), ("log_every", STEPS), ("checkpoint_every", 0), ("batch_size", BATCH))]  # fmt: skip
    return [
        f"data.images=npz:{FOLDER / 'images.npz'}",
        "data.labels_per_class=2", "data.validation_per_class=1", "data.test_per_class=1",
        f"source.generator=biggan-deep:{generator}", f"source.classifier.network={NETWORK}",
        f"source.classifier.weights={FOLDER / 'classifier.safetensors'}",
        f"target.network={NETWORK}", "synthesis.images=fresh", "training.validate_every=0",
        *sizes, f"p_ssl.batch_size={BATCH}",
        # Tracing takes longer than all of a dry run's steps; parts 3 and 4 try the rewritten generator.
        f"source.optimize={'false' if job.dry else 'true'}",
    ]  # fmt: skip


@cache
def task() -> Task:
    return build_task(load_config(None, settings()))


def stage_steps(name: str, *schedule: str) -> Callable[[], Found]:
    def timed() -> Found:
        # The rewritten generator is built once; only the stage's schedule changes.
        from dataclasses import replace

        own = replace(task(), config=load_config(None, [*settings(), *schedule]))
        times: list[float] = []

        def on_step(stage: str, step: int, steps: int) -> None:
            if step in (steps // 3, steps):
                synchronize()
                times.append(time.perf_counter())

        try:
            stage = make_stage(name, own, own.new_network())
        except UserError as error:
            if ON_GPU:
                raise
            raise NotHere(str(error).splitlines()[0]) from error
        peak = peak_gib(lambda: fit(stage, Context(on_step=on_step)))
        each = (times[1] - times[0]) / (STEPS - STEPS // 3)
        facts = {"seconds": each, "images_per_second": stage.images_per_step / each, "peak_gib": peak}  # fmt: skip
        return f"{1e3 * each:.2f} ms a step, {peak:.1f} GiB", facts

    return timed


def idle_share(*schedule: str) -> Callable[[], Found]:
    """The share of time in P-SSL's later steps in which no kernel ran."""

    def measured() -> Found:
        if not ON_GPU:
            raise NotHere("a CPU has no kernels to watch")
        from dataclasses import replace

        from torch.profiler import ProfilerActivity, profile

        own = replace(task(), config=load_config(None, [*settings(), *schedule]))
        watch = profile(activities=[ProfilerActivity.CUDA])

        def on_step(stage: str, step: int, steps: int) -> None:
            if step == steps // 2:
                synchronize()
                watch.start()
            if step == steps - 1:
                synchronize()
                watch.stop()

        fit(make_stage("p-ssl", own, own.new_network()), Context(on_step=on_step))
        spans = sorted((e.time_range.start, e.time_range.end) for e in watch.events() or ())
        busy, until = 0.0, spans[0][0]
        for start, end in spans:
            busy += max(0.0, end - max(start, until))
            until = max(until, end)
        idle = 1 - busy / (until - spans[0][0])
        return f"{idle:.1%} of the time no kernel ran", {"idle": idle, "kernels": len(spans)}

    return measured


AHEAD, CAPTURED = "engine.overlap=always", "engine.capture=true"
checks: list[tuple[str, Callable[[], Any], float]] = [
    *((f"target step, {p}", target_step(p, False), 15) for p in ("tf32", "bfloat16")),
    *((f"C_s, {p}", source_classifier(p), 10) for p in ("float32", "tf32", "bfloat16")),
    *((f"{s}, overlap never", stage_steps(s, "engine.overlap=never"), 40) for s in ("p-ssl", "pp")),
    *((f"{s}, overlap ahead", stage_steps(s, AHEAD), 30) for s in ("p-ssl", "pp")),
    *((f"{s}, captured", stage_steps(s, AHEAD, CAPTURED), 30) for s in ("p-ssl", "pp")),
    ("p-ssl, not deterministic", stage_steps("p-ssl", "deterministic=false"), 30),
    ("idle, overlap never", idle_share("engine.overlap=never"), 30),
    ("idle, overlap ahead", idle_share(AHEAD), 30),
    ("idle, captured", idle_share(AHEAD, CAPTURED), 30),
]
if not job.dry:
    checks.insert(2, ("target step compiled, bfloat16", target_step("bfloat16", True), 60))
for title, check, needs in checks:
    job.check(title, check, needs=needs)
temporary.cleanup()
