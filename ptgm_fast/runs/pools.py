"""The image pools of a run, as its config describes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ptgm_fast.config import RunConfig
from ptgm_fast.runs.task import Task
from ptgm_fast.sampling import (
    FrozenGenerator,
    Pool,
    Recipe,
    check_pool,
    conditioning_table,
    folder_pool,
    memory_pool,
    open_pool,
)
from ptgm_fast.sampling.recipe import digest_of, weights_digest
from ptgm_fast.sampling.stores import MemoryStore
from ptgm_fast.training.options import PPOptions

# Subfolder of a run's folder for pools kept on disk, one per stage.
POOL = "pool"


def uniform_recipe(config: RunConfig, source: FrozenGenerator) -> Recipe:
    """The recipe of images with uniform source labels, for PP."""
    return Recipe(source, seed=config.seed, precision=config.precision)


def conditioned_recipe(task: Task, *, unlabelled: bool = False) -> Recipe:
    """The recipe of images for the labelled target images; unlabelled: also for the unlabelled ones, for P-SSL."""
    config, source = task.config, task.source
    images = task.data.asking if unlabelled else task.data.asking[:1]
    temperature, top_k = config.p_ssl.pcs_temperature, config.p_ssl.pcs_top_k or None
    return Recipe(
        source,
        seed=config.seed,
        precision=config.precision,
        table=partial(
            conditioning_table,
            source,
            *(each.to(task.device) for each in images),
            temperature=temperature,
            top_k=top_k,
        ),
        targets={
            "num_target_images": sum(map(len, images)),
            "target_images_sha256": digest_of(*images),
            "classifier_sha256": weights_digest(source.classifier),
            "classifier_normalization": [
                source.mean.flatten().tolist(),
                source.std.flatten().tolist(),
            ],
            "temperature": temperature,
            "top_k": top_k,
        },
    )


def pool_size(images: int | str, pp: PPOptions) -> int | str:
    """`synthesis.images` as a number (for a fraction, at least two batches), or "fresh"."""
    if isinstance(images, int) or images == "fresh":
        return images
    return max(2 * pp.batch_size, pp.steps * pp.batch_size // int(images.removeprefix("1/")))


class Pools:
    """The pools of a run's stages, or of all runs of a comparison. Each is made once."""

    def __init__(self, folder: Path | None = None, *, uniform: Pools | None = None) -> None:
        """folder: for pools that are not kept in memory. uniform: pools whose uniform-label pool is used for every seed."""
        self._folder, self._uniform = folder, uniform
        self._pools: dict[str, Pool] = {}

    def of(self, stage: str, task: Task) -> Pool | None:
        """The pool of a stage of the task's config; None if the stage has none.

        Raises UserError for a pool that was made for something else or is too small, see `check_pool`.
        """
        options = task.config.synthesis
        count: int | str = 0
        if stage == "pp":
            count = pool_size(options.images, task.config.pp)
        elif stage == "p-ssl" and options.images_per_target != "fresh":
            count = int(options.images_per_target) * task.data.num_asking
        if not isinstance(count, int) or not count:
            return None
        if stage == "pp" and self._uniform is not None:
            return self._uniform.of(stage, task)
        if stage not in self._pools:
            self._pools[stage] = self._new(stage, task, count)
        return self._pools[stage]

    def _new(self, stage: str, task: Task, count: int) -> Pool:
        options = task.config.synthesis
        recipe = (
            uniform_recipe(task.config, task.source)
            if stage == "pp"
            else conditioned_recipe(task, unlabelled=True)
        )
        if options.pool not in ("memory", "run"):
            path = Path(options.pool)
            path = path / stage if (path / stage).is_dir() else path
            pool = open_pool(path, device=task.device)
            if stage == "pp" and not isinstance(options.images, int):
                # A fraction of the images shown applies only to a pool made here; an existing pool is used in full.
                count = len(pool)
            check_pool(pool, recipe, count, f"synthesis.pool = {str(path)!r}")
            return pool.first(count)
        kept = sum(p.num_bytes for p in self._pools.values() if isinstance(p.store, MemoryStore))
        pool = memory_pool(recipe, count)
        if options.pool == "memory" and kept + pool.num_bytes <= options.memory_limit * 2**30:
            return pool
        if self._folder is None:
            raise ValueError("a pool on disk needs a folder")
        return folder_pool(recipe, count, self._folder / stage)
