"""A source classifier for a generator that has none: trained once on the generator's own samples, then kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ptgm_fast.config import RunConfig
from ptgm_fast.config.run import is_trained_here
from ptgm_fast.errors import UserError
from ptgm_fast.models import TargetNetwork, read_state, save_weights
from ptgm_fast.models.weights import load_state, write_atomically
from ptgm_fast.records import read_json
from ptgm_fast.runs.check import agreement
from ptgm_fast.runs.pools import uniform_recipe
from ptgm_fast.sampling import SourceModels, seeded
from ptgm_fast.training.checkpoint import CheckpointFile
from ptgm_fast.training.context import Context
from ptgm_fast.training.execution import Execution
from ptgm_fast.training.loop import fit
from ptgm_fast.training.pp import PseudoPreTraining

WEIGHTS, FIGURES, CHECKPOINT = (
    "classifier.safetensors",
    "classifier.json",
    "classifier-checkpoint.pt",
)
FRESH_SAMPLES = 512


class ClassifierTraining(PseudoPreTraining):
    """minimize CE(C_s(x), y), y ~ Uniform{0..K_s-1}, x = view(G_s(z, y)): like pseudo pre-training, with separate samples."""

    name = "classifier"


def train_classifier(
    source: SourceModels, config: RunConfig, folder: Path, context: Context | None = None
) -> dict[str, Any] | None:
    """Give the source its classifier if the config has "none": train it, or load the one kept in `folder`.

    Writes classifier.safetensors and classifier.json, and returns the latter's figures: those of the stage, and the share
    of fresh samples that the classifier recognizes. A stopped training continues from its checkpoint, bit for bit. The seed
    is `source.training.seed`, so runs of all seeds share the classifier. Returns None for a config that names a
    classifier. Raises UserError if the folder's classifier was made for something else, and as `fit` does.
    """
    if not is_trained_here(config):
        return None
    context = context or Context()
    made_of = _made_of(source, config)
    kept = context.group.from_first(lambda: _kept(folder, made_of))
    if kept is None:
        with context.spans(ClassifierTraining.name):
            kept = _train(source, config, folder, made_of, context)
    state, figures = kept
    load_state(source.classifier, state, where=f"the classifier in {str(folder)!r}")
    return figures


def _made_of(source: SourceModels, config: RunConfig) -> dict[str, Any]:
    """Everything that the classifier's weights depend on, as JSON values."""
    law = dict(uniform_recipe(config, source).law)
    del law["seed"]
    told = {"samples": law, "training": config.source.training.model_dump(mode="json")}
    made_of: dict[str, Any] = json.loads(json.dumps(told))
    return made_of


def _kept(
    folder: Path, made_of: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    path = folder / FIGURES
    if not path.is_file():
        return None
    again = f"Remove it and {WEIGHTS} to train the classifier again"
    record = read_json(path, again=again)
    if record.get("made_of") != made_of:
        raise UserError(
            f"the classifier in {str(folder)!r} was trained on another generator's samples or with other source.training settings. "
            f"Choose another folder, or remove {WEIGHTS} and {FIGURES} there"
        )
    return read_state(folder / WEIGHTS, what="source classifier"), record["figures"]


def _train(
    source: SourceModels,
    config: RunConfig,
    folder: Path,
    made_of: Mapping[str, Any],
    context: Context,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    options, group = config.source.training, context.group
    with seeded(options.seed, "source classifier/head"):
        network = TargetNetwork(
            copy.deepcopy(source.classifier).cpu().requires_grad_(True),
            num_classes=source.num_classes,
            name=f"source classifier {options.network}",
        )
        network.set_head("source", source.num_classes)
    network.to(source.device)
    stage = ClassifierTraining(
        network,
        source,
        options,
        mean=(0.5,) * source.image_shape[0],
        std=(0.5,) * source.image_shape[0],
        seed=options.seed,
        execution=Execution(
            config.compile, config.precision, config.deterministic, config.engine, group
        ),
    )
    checkpoint, resume = None, None
    if group.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = CheckpointFile(
            folder / CHECKPOINT,
            config=json.dumps(made_of, indent=1),
            notice=context.on_notice,
        )
    resume = group.from_first(
        lambda: checkpoint.load() if checkpoint and checkpoint.exists() else None
    )
    result = fit(stage, context, checkpoint=checkpoint, resume=resume)
    network.heads["target"] = network.heads["source"]
    state = {name: value.detach().cpu() for name, value in network.export_state().items()}
    load_state(source.classifier, state, where="the trained classifier")
    figures = {
        "network": options.network,
        "steps": result.steps,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "images_synthesized": result.images_synthesized,
        "fresh_samples_recognized": agreement(source, config, FRESH_SAMPLES),
    }
    if group.is_first:
        save_weights(state, folder / WEIGHTS, {"network": options.network})
        text = json.dumps({"figures": figures, "made_of": made_of}, indent=2) + "\n"
        write_atomically(folder / FIGURES, text.encode())
        for path in checkpoint.files() if checkpoint else ():
            path.unlink()
    return state, figures
