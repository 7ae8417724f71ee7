"""Shared by the tests of runs: a run's final weights, a prepared stage, and a request to stop."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ptgm_fast.config import RunConfig
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stages, run_stages, train
from ptgm_fast.training.context import Context
from ptgm_fast.training.stage import Stage


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def trained(config: RunConfig) -> dict[str, torch.Tensor]:
    """A run's final weights, without its folder and pictures."""
    task = build_task(config)
    network = task.new_network()
    run_stages(make_stages(task, network), Context())
    return network.export_state()


_TRAINED: dict[str, dict[str, torch.Tensor]] = {}


def trained_once(config: RunConfig) -> dict[str, torch.Tensor]:
    """The same, remembered: for the run that many tests compare theirs with."""
    key = config.model_dump_json()
    if key not in _TRAINED:
        _TRAINED[key] = trained(config)
    return _TRAINED[key]


class Wholes:
    """Folders of uninterrupted runs, each trained once."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._folders: dict[str, Path] = {}

    def __call__(self, config: RunConfig) -> Path:
        key = config.model_dump_json()
        if key not in self._folders:
            out = self._make_folder("whole") / "run"
            train(config, out)
            self._folders[key] = out
        return self._folders[key]


def ready(stage: Stage) -> Stage:
    """A stage that is ready to make batches, as at `fit`'s first step."""
    stage.prepare()
    return stage


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(stage: str, step: int) -> Context:
    seen: list[bool] = []

    def on_step(name: str, done: int, steps: int) -> None:
        if name == stage and done >= step:
            seen.append(True)

    return Context(on_step=on_step, stop=lambda: bool(seen))
