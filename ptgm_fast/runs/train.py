"""One run: the stages of a config, the best checkpoint by validation accuracy, its test accuracy, the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ptgm_fast import models
from ptgm_fast.config import RunConfig, config_to_toml
from ptgm_fast.models.weights import load_state
from ptgm_fast.runs import figures
from ptgm_fast.runs.artifacts import make_pairs, read_summary, write_evaluation, write_pairs
from ptgm_fast.runs.check import check_at_start
from ptgm_fast.runs.classifier import seen_by_classifier
from ptgm_fast.runs.folder import RunFolder
from ptgm_fast.runs.own_classifier import train_classifier
from ptgm_fast.runs.plots import save
from ptgm_fast.runs.pools import POOL, Pools
from ptgm_fast.runs.profiled import profiled
from ptgm_fast.runs.task import Task, build_task, versions
from ptgm_fast.sampling import SourceModels
from ptgm_fast.training.checkpoint import CheckpointFile, written
from ptgm_fast.training.context import Context
from ptgm_fast.training.distributed import ProcessGroup, own_device
from ptgm_fast.training.evaluation import Evaluation, evaluate
from ptgm_fast.training.execution import Execution
from ptgm_fast.training.loop import StageResult, fit
from ptgm_fast.training.p_ssl import PseudoSemiSupervised
from ptgm_fast.training.pp import PseudoPreTraining
from ptgm_fast.training.stage import Stage
from ptgm_fast.training.target import SupervisedStage


def make_stage(
    name: str,
    task: Task,
    network: models.TargetNetwork,
    group: ProcessGroup | None = None,
    pools: Pools | None = None,
) -> Stage:
    """Make the stage `name` of the task's config for `network`. Raises UserError as `Stage` and `Pools` do."""
    config, data = task.config, task.data
    pool = (pools or Pools()).of(name, task)
    execution = Execution(
        config.compile,
        config.precision,
        config.deterministic,
        config.engine,
        group or ProcessGroup(),
    )
    if name == "pp":
        return PseudoPreTraining(
            network,
            task.source,
            config.pp,
            mean=data.mean,
            std=data.std,
            form=data.train.form,
            seed=config.seed,
            execution=execution,
            pool=pool,
        )
    if name == "supervised":
        return SupervisedStage(
            network,
            data,
            task.source,
            config.training,
            distillation=config.supervised.distillation,
            distillation_options=config.distillation,
            seed=config.seed,
            execution=execution,
        )
    return PseudoSemiSupervised(
        network,
        data,
        task.source,
        config.training,
        config.p_ssl,
        distillation_options=config.distillation,
        seed=config.seed,
        execution=execution,
        pool=pool,
    )


def make_stages(
    task: Task,
    network: models.TargetNetwork,
    group: ProcessGroup | None = None,
    pools: Pools | None = None,
) -> list[Stage]:
    """Make the stages of the task's config, in order, for one network."""
    pools = pools or Pools()
    return [make_stage(name, task, network, group, pools) for name in task.config.stages]


def run_stages(
    stages: Sequence[Stage],
    context: Context,
    *,
    results: Sequence[StageResult] = (),
    resume: Mapping[str, Any] | None = None,
    checkpoint: CheckpointFile | None = None,
) -> list[StageResult]:
    """Run the stages that `results` does not cover yet, the first of them from `resume`; return all results."""
    done = list(results)
    with written(checkpoint):
        for stage in stages[len(done) :]:
            if checkpoint:
                checkpoint.carried = {"results": [vars(r) for r in done]}
            with context.spans(stage.name):
                done.append(fit(stage, context, checkpoint=checkpoint, resume=resume))
            resume = None
            if checkpoint and len(done) < len(stages):
                # If stopped between two stages, a resume starts at the next one.
                checkpoint.carried = {"results": [vars(r) for r in done]}
                following = stages[len(done)].name
                checkpoint.save(
                    {"stage": following, "step": 0, "network": stage.network.state_dict()}
                )
    return done


def train(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    context: Context | None = None,
    profile: bool = False,
    profile_ops: int = 0,
    on_task: Callable[[Task], None] = lambda task: None,
) -> dict[str, Any]:
    """Run `config` in the folder `out` and return its summary (also written there as summary.json).

    resume: continue a stopped run, bit for bit as if it had not been stopped; for a finished run, return its summary.
    profile: also write profile.json and trace.json. profile_ops: number of steps of each stage to run under torch.profiler.
    Both profile only the first process. on_task receives the loaded task, unless the run was already finished. With
    several processes (`Context.group`), each calls this with the same config; the first one reads and writes the folder,
    and all return its summary. Raises UserError if something does not fit, and `Interrupted` when the context asks to stop.
    """
    out, context = Path(out), context or Context()
    group = context.group
    if (profile or profile_ops) and group.is_first:
        return profiled(
            lambda watched: train(config, out, resume=resume, context=watched, on_task=on_task),
            config,
            out,
            context,
            profile_ops,
        )
    if resume and (finished := group.from_first(lambda: _finished(out))):
        return finished
    own_device(config.device, group)
    # All input errors are found before the folder exists.
    with context.spans("setup"):
        task = build_task(config, on_notice=context.on_notice, on_images=context.on_images)
        network = task.new_network()
        stages = make_stages(task, network, group, Pools(out / POOL))
    on_task(task)
    group.barrier()
    opened = (
        RunFolder.writing(out, resume=resume) if group.is_first else nullcontext(RunFolder(out))
    )
    with opened as folder:
        checkpoint = None
        if group.is_first and not resume:
            folder.write_config(config_to_toml(config))
            folder.write_metrics([])
        if own := train_classifier(task.source, config, out, context):
            # Stages again: a pool for target images is identified by the classifier that it was made with.
            network = task.new_network()
            stages = make_stages(task, network, group, Pools(out / POOL))
        if group.is_first:
            context = _recording(context, folder)
            checkpoint = CheckpointFile(
                folder.checkpoint,
                keep=config.checkpoint_keep,
                config=config_to_toml(config),
                notice=context.on_notice,
            )
        state = group.from_first(
            lambda: _state_to_resume(config, folder, checkpoint) if resume else None
        )
        with context.spans("check"):
            found = group.from_first(lambda: _checked(task, folder, context))
        found = found if own is None else {**found, "classifier": own}
        results = [StageResult(**r) for r in state["results"]] if state else []
        if state and state["step"] == 0:
            load_state(network, state["network"], where="the checkpoint")
            state = None
        results = run_stages(stages, context, results=results, resume=state, checkpoint=checkpoint)
        return group.from_first(
            lambda: _write_results(task, network, results, folder, context, found)
        )


def _checked(task: Task, folder: RunFolder, context: Context) -> dict[str, Any]:
    """Run `check_at_start` and return its figures for the summary, under ``check``."""
    record = check_at_start(task, folder.path, context.on_notice)
    return {"check": record.model_dump(mode="json", exclude={"version", "key"}) if record else None}


def _finished(out: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None for an unfinished one; raises UserError if there is no run."""
    return read_summary(out) if RunFolder.reopen(out).summary.is_file() else None


def _write_results(
    task: Task,
    network: models.TargetNetwork,
    results: Sequence[StageResult],
    folder: RunFolder,
    context: Context,
    found: Mapping[str, Any],
) -> dict[str, Any]:
    """Evaluate the network; write its weights, the pictures and, last, the summary."""
    config = task.config
    with context.spans("evaluation"):
        summary = summarize(
            task,
            network,
            results,
            lambda test: write_evaluation(test, task.data.test.class_names, folder),
        )
        summary |= {"processes": context.group.size, **found}
    models.save_weights(
        network.export_state(),
        folder.model,
        {"network": config.target.network, "task": config.task},
    )
    written = models.read_state(folder.model)
    task.check_exported(network, task.plain_network(), written, task.data.test)
    with context.spans("pictures"):
        pairs = make_pairs(task)
        write_pairs(pairs, folder)
        save(figures.sample_sheet(pairs), folder.path / "samples.png")
        save(figures.curves(folder.read_metrics(), config.stages), folder.path / "curves.png")
    folder.write_json(folder.summary, summary)
    return summary


def _state_to_resume(
    config: RunConfig, folder: RunFolder, checkpoint: CheckpointFile | None
) -> dict[str, Any] | None:
    """The newest intact checkpoint, with the metrics truncated to it; None if the run stopped before its first checkpoint."""
    if checkpoint is None or not checkpoint.exists():
        folder.write_metrics([])
        return None
    state = checkpoint.load()
    folder.rewind_metrics(config.stages, state["stage"], state["step"])
    return state


def _recording(context: Context, folder: RunFolder) -> Context:
    """The same context, with every metric also appended to metrics.jsonl."""
    shown = context.on_metrics

    def on_metrics(stage: str, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        folder.append_metrics({"stage": stage, "step": step, **metrics})
        shown(stage, step, steps, metrics)

    return replace(context, on_metrics=on_metrics)


def describe_optimizer(source: SourceModels) -> dict[str, Any] | None:
    """What the generator's rewrite did; None if the original was kept."""
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


def describe_classifier(task: Task) -> dict[str, Any]:
    """The source classifier's network and its input preprocessing."""
    choice, card = task.config.source.classifier, task.source.generator.card
    seen = seen_by_classifier(choice, card)
    lists = {"mean": list(seen.mean), "std": list(seen.std)}
    return {"network": choice.network or "the generator's own", **asdict(seen), **lists}


def summarize(
    task: Task,
    network: models.TargetNetwork,
    results: Sequence[StageResult],
    on_test: Callable[[Evaluation], None] = lambda test: None,
) -> dict[str, Any]:
    """Test accuracy and calibration of the network as it is, with the stages' results; on_test receives all predictions."""
    data, config = task.data, task.config
    normalize = data.normalizer(task.device)
    test = evaluate(network, normalize, data.test.images, data.test.labels)
    on_test(test)
    card = task.source.generator.card
    return {
        "task": config.task,
        "seed": config.seed,
        "device": str(task.device),
        "deterministic": config.deterministic,
        "num_threads": torch.get_num_threads(),
        "versions": versions(),
        "source": {
            "generator": config.source.generator,
            "num_classes": card.num_classes,
            "soft_labels": card.soft_labels,
            "settings": getattr(card, "settings", {}),
            "optimized": describe_optimizer(task.source),
            "classifier": describe_classifier(task),
            "sha256": {name: file.sha256 for name, file in card.files.items()},
        },
        "stages": {result.stage: result.as_dict() for result in results},
        "target": {
            "network": config.target.network,
            "num_classes": task.num_classes,
            "train_images": len(data.train),
            "unlabelled_images": len(data.unlabelled) if data.unlabelled else 0,
            "validation_images": len(data.validation),
            "test_images": len(data.test),
            "test_accuracy": test.accuracy,
            "val_accuracy": results[-1].validation_accuracy,
            "ece": test.ece,
        },
    }
