"""One run: the stages of a config, the best checkpoint by validation, its test accuracy, the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ptgm_fast import models
from ptgm_fast.config import RunConfig, config_to_toml
from ptgm_fast.models.weights import load_state
from ptgm_fast.runs import plots
from ptgm_fast.runs.evidence import make_pairs, write_evaluation, write_pairs
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.profiled import profiled
from ptgm_fast.runs.task import Task, build_task, versions
from ptgm_fast.sampling import SourceModels
from ptgm_fast.training.checkpoint import CheckpointFile
from ptgm_fast.training.context import Context
from ptgm_fast.training.evaluation import Evaluation, evaluate
from ptgm_fast.training.pp import PseudoPreTraining
from ptgm_fast.training.stage import Stage, StageResult
from ptgm_fast.training.target import PseudoSemiSupervised, SupervisedStage


@dataclass
class Progress:
    """Network and results as the stages go by; what a resume starts from."""

    network: models.TargetNetwork
    results: list[StageResult] = field(default_factory=list)
    resume: Mapping[str, Any] | None = None


def make_stage(name: str, task: Task, network: models.TargetNetwork, context: Context) -> Stage:
    """The stage `name` of the task's config over `network`."""
    config, data = task.config, task.data
    if name == "pp":
        return PseudoPreTraining(
            network,
            task.source,
            config.pp,
            mean=data.mean,
            std=data.std,
            seed=config.seed,
            context=context,
        )
    shared = {"distillation_options": config.distillation, "seed": config.seed, "context": context}
    if name == "supervised":
        return SupervisedStage(
            network,
            data,
            task.source,
            config.training,
            distillation=config.supervised.distillation,
            **shared,  # type: ignore[arg-type]
        )
    return PseudoSemiSupervised(network, data, task.source, config.training, config.p_ssl, **shared)  # type: ignore[arg-type]


def run_stages(
    task: Task, progress: Progress, context: Context, checkpoint: CheckpointFile | None = None
) -> Progress:
    """Run the stages that `progress` has not finished, in place."""
    stages = task.config.stages
    for position in range(len(progress.results), len(stages)):
        name = stages[position]
        if checkpoint:
            checkpoint.carried = {"results": [vars(r) for r in progress.results]}
        with context.spans(name):
            stage = make_stage(name, task, progress.network, context)
            result = stage.run(checkpoint, progress.resume)
        progress.resume = None
        progress.results.append(result)
        if checkpoint and position + 1 < len(stages):
            # A stop between the stages resumes at the next one.
            checkpoint.carried = {"results": [vars(r) for r in progress.results]}
            checkpoint.save(
                {"stage": stages[position + 1], "step": 0, "network": progress.network.state_dict()}
            )
    return progress


def train(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    context: Context | None = None,
    profile: bool = False,
    profile_ops: int = 0,
) -> dict[str, Any]:
    """Run `config` in the folder `out` and return its summary (also written there as summary.json).

    With resume, a run stopped before is continued, bit for bit as if it had not been stopped; a finished one
    returns its summary. profile: also write profile.json and trace.json; profile_ops: steps of each stage under
    torch.profiler. Raises UserError for what does not fit, `Interrupted` when the context asks to stop.
    """
    context = context or Context()
    if profile or profile_ops:
        return profiled(
            lambda watched: train(config, out, resume=resume, context=watched),
            config,
            out,
            context,
            profile_ops,
        )
    if resume and (folder := RunFolder.reopen(out)).summary.is_file():
        return json.loads(folder.summary.read_text(encoding="utf-8"))
    # Everything that can be wrong with the input is found before the folder exists.
    with context.spans("setup"):
        task = build_task(config)
    if not resume:
        folder = RunFolder.create(out)
        folder.write_text(folder.config, config_to_toml(config))
    context = _recording(context, folder)
    checkpoint = CheckpointFile(folder.checkpoint)
    progress = _start(task, folder, checkpoint if resume and checkpoint.exists() else None)
    run_stages(task, progress, context, checkpoint)
    with context.spans("evaluation"):
        summary = summarise(
            task, progress, lambda test: write_evaluation(test, task.data.test.class_names, folder)
        )
    models.save_weights(
        progress.network.export_state(),
        folder.model,
        {"network": config.target.network, "task": config.task},
    )
    with context.spans("pictures"):
        pairs = make_pairs(task)
        write_pairs(pairs, folder)
        plots.sample_sheet(pairs, folder.path / "samples.png")
        plots.curves(folder.read_metrics(), config.stages, folder.path / "curves.png")
    folder.write_json(folder.summary, summary)
    return summary


def _start(task: Task, folder: RunFolder, checkpoint: CheckpointFile | None) -> Progress:
    progress = Progress(task.new_network())
    if checkpoint is None:
        folder.write_text(folder.metrics, "")
        return progress
    state = checkpoint.load()
    stages = task.config.stages
    if state["stage"] not in stages:
        raise ValueError(f"checkpoint of stage {state['stage']!r}, which the config does not list")
    folder.rewind_metrics(stages, state["stage"], state["step"])
    progress.results = [StageResult(**r) for r in state["results"]]
    if state["step"] == 0:
        load_state(progress.network, state["network"], where=f"checkpoint {str(checkpoint.path)!r}")
    else:
        progress.resume = state
    return progress


def _recording(context: Context, folder: RunFolder) -> Context:
    """The same context, with every metric also appended to metrics.jsonl."""
    shown = context.on_metrics

    def on_metrics(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        folder.append_metrics({"stage": stage, "step": step, **metrics})
        shown(stage, step, steps, metrics)

    return replace(context, on_metrics=on_metrics)


def describe_optimizer(source: SourceModels) -> dict[str, Any] | None:
    """What the rewrite of the generator did; None if the original was kept."""
    done = source.optimized
    if done is None:
        return None
    before, after = done.multiply_adds
    return {
        "multiply_adds_per_image": {"before": before, "after": after},
        "difference": done.difference,
        "left": done.left,
        "parts": list(done.parts),
    }


def summarise(
    task: Task, progress: Progress, on_test: Callable[[Evaluation], None] = lambda test: None
) -> dict[str, Any]:
    """Test accuracy and calibration of the network as it is, with what the stages did; on_test sees every prediction."""
    data, config = task.data, task.config
    normalise = data.normaliser(task.device)
    test = evaluate(progress.network, normalise, data.test.images, data.test.labels)
    on_test(test)
    card = task.source.generator.card
    return {
        "task": config.task,
        "seed": config.seed,
        "device": str(task.device),
        "num_threads": torch.get_num_threads(),
        "versions": versions(),
        "source": {
            "generator": config.source.generator,
            "num_classes": card.num_classes,
            "soft_labels": card.soft_labels,
            "settings": getattr(card, "settings", {}),
            "optimized": describe_optimizer(task.source),
            "sha256": {name: file.sha256 for name, file in card.files.items()},
        },
        "stages": {result.stage: result.as_dict() for result in progress.results},
        "target": {
            "network": config.target.network,
            "num_classes": task.num_classes,
            "train_images": len(data.train),
            "validation_images": len(data.validation),
            "test_images": len(data.test),
            "test_accuracy": test.accuracy,
            "val_accuracy": progress.results[-1].validation_accuracy,
            "ece": test.ece,
        },
    }
