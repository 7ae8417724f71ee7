"""A process that tests/runs/test_distributed.py starts: it runs the cases, and the first process writes the results.

python distributed_worker.py CONFIG.toml OUT, alone or under torchrun; the folder OUT gets curves.json and what the processes
make together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ptgm_fast.config import load_config
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stages, run_stages, train
from ptgm_fast.training.batchnorm import SynchronizedBatchNorm
from ptgm_fast.training.context import Context
from ptgm_fast.training.distributed import ProcessGroup, joined

STEPS = (
    "pp.steps=15",
    "training.steps=25",
    "pp.log_every=1",
    "training.log_every=1",
    "precision=float32",  # bfloat16 would round weights in float64, and hide differences of a hundredth
)
# Batches that two processes cannot divide equally.
UNEVEN = ("pp.batch_size=15", "training.batch_size=9", "p_ssl.batch_size=7")
CASES: dict[str, tuple[bool, tuple[str, ...]]] = {
    # name: (weights in float64, settings)
    "concat": (True, (*UNEVEN, "p_ssl.batch_norm=concat")),
    "split": (True, (*UNEVEN, "p_ssl.batch_norm=split", "p_ssl.method=uda", "p_ssl.threshold=0.2")),
    "target-only": (
        True,
        (
            *UNEVEN,
            "p_ssl.batch_norm=target-only",
            "p_ssl.method=entropy",
            "training.gradient_clip=0.5",
        ),
    ),
    "aligned": (
        True,
        (
            *UNEVEN,
            "p_ssl.method=['uda', 'mean-teacher']",
            "p_ssl.alignment=labelled",
            "p_ssl.threshold=0.2",
            "p_ssl.teacher_decay=0.5",
        ),
    ),
    "adaptive": (
        True,
        (
            *UNEVEN,
            "p_ssl.method=['flexmatch', 'freematch', 'softmatch', 'adamatch']",
            "p_ssl.batch_norm=concat",
            "p_ssl.threshold=0.5",
            "p_ssl.fairness_weight=0.5",
            "p_ssl.filter=confidence",
        ),
    ),
    "supervised": (
        True,
        (*UNEVEN, 'stages=["supervised"]', "supervised.distillation=logit-matching"),
    ),
    "pool": (True, (*UNEVEN, "synthesis.images=130", "synthesis.images_per_target=3")),
    "float32": (
        False,
        (
            *UNEVEN,
            "source.optimize=true",
            "p_ssl.batch_norm=concat",
            "pp.lr=0.01",
            "training.lr=0.01",
        ),
    ),
}


def curve(toml: Path, doubled: bool, settings: tuple[str, ...], group: ProcessGroup) -> list[Any]:
    records: list[Any] = []
    task = build_task(load_config(toml, [*STEPS, *settings]))
    network = task.new_network()
    if doubled:
        network.double()
        network.network.register_forward_pre_hook(lambda module, images: (images[0].double(),))
    context = Context(
        group=group,
        on_metrics=lambda stage, step, steps, metrics: records.append([stage, step, metrics]),
    )
    run_stages(make_stages(task, network, group), context)
    return records


def normalized(group: ProcessGroup) -> dict[str, Any]:
    """Batch norm of 7 samples, divided among the processes: the whole batch's output, running statistics and gradients."""
    x = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    offset, number = group.share(len(x))
    mine = x[offset : offset + number].requires_grad_()
    weight = torch.tensor([0.5, 1.0, -2.0], dtype=x.dtype, requires_grad=True)
    bias = torch.tensor([0.1, 0.0, 3.0], dtype=x.dtype, requires_grad=True)
    mean, variance = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
    if group.size == 1:
        output = F.batch_norm(mine, mean, variance, weight, bias, training=True, momentum=0.3)
    else:
        with SynchronizedBatchNorm(group):
            output = F.batch_norm(mine, mean, variance, weight, bias, training=True, momentum=0.3)
    (output * upstream[offset : offset + number]).sum().backward()
    group.sum_gradients([weight, bias])  # type: ignore[list-item]
    parts = group.collect((output.detach(), mine.grad))
    assert weight.grad is not None
    assert bias.grad is not None
    return {
        "output": torch.cat([p[0] for p in parts]).flatten().tolist(),
        "input gradient": torch.cat([p[1] for p in parts]).flatten().tolist(),
        "running": [*mean.tolist(), *variance.tolist()],
        "gradients": [*weight.grad.tolist(), *bias.grad.tolist()],
    }


POOLS = ("synthesis.images=150", "synthesis.images_per_target=3", "synthesis.pool=run")


def write_files(toml: Path, out: Path, group: ProcessGroup) -> None:
    """600 images, and a run of so few steps as show each image of its pools: what one process does not need, it does not make."""
    synthesize(load_config(toml), 600, out / "images", group=group)
    few = (*UNEVEN, "pp.steps=10", "training.steps=7", "training.validate_every=0")
    train(load_config(toml, [*few, *POOLS]), out / "run", context=Context(group=group))


def main() -> None:
    torch.set_num_threads(1)
    toml, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(exist_ok=True)
    with joined() as group:
        write_files(toml, out, group)
        found: dict[str, Any] = {"batch norm": normalized(group)}
        for name, (doubled, settings) in CASES.items():
            found[name] = curve(toml, doubled, settings, group)
        if group.is_first:
            (out / "curves.json").write_text(json.dumps(found))
    # A thread of the process group that stays alive would sometimes abort the interpreter's exit.
    left = [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in left if "gloo" in name], left


if __name__ == "__main__":
    main()
