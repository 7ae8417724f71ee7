"""From a run's config to the pools of its images."""

from __future__ import annotations

from functools import partial

from ptgm_fast.config import RunConfig
from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import FrozenGenerator, Recipe, conditioning_table
from ptgm_fast.sampling.recipe import digest_of, weights_digest


def uniform_recipe(config: RunConfig, source: FrozenGenerator) -> Recipe:
    """Images of uniform source labels, as PP trains on."""
    return Recipe(source, seed=config.seed, precision=config.precision)


def conditioned_recipe(task: Task) -> Recipe:
    """Images for the labelled target images, as P-SSL trains on."""
    config, source, images = task.config, task.source, task.data.train.images
    temperature, top_k = config.p_ssl.pcs_temperature, config.p_ssl.pcs_top_k or None
    return Recipe(
        source,
        seed=config.seed,
        precision=config.precision,
        table=partial(
            conditioning_table,
            source,
            images.to(task.device),
            temperature=temperature,
            top_k=top_k,
        ),
        targets={
            "num_target_images": len(images),
            "target_images_sha256": digest_of(images),
            "classifier_sha256": weights_digest(source.classifier),
            "classifier_normalization": [
                source.mean.flatten().tolist(),
                source.std.flatten().tolist(),
            ],
            "temperature": temperature,
            "top_k": top_k,
        },
    )
