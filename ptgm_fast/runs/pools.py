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
from ptgm_fast.training.target_data import TargetData

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


def images_per_target(config: RunConfig, data: TargetData) -> int | str:
    """`synthesis.images_per_target` as a number, or "fresh": also where a part is less than two images for each target
    image, or than two batches."""
    asked, pssl = config.synthesis.images_per_target, config.p_ssl
    if isinstance(asked, int) or asked == "fresh":
        return asked
    pseudo = pssl.batch_size - (pssl.real_images if data.unlabelled is not None else 0)
    shown = config.training.steps * pseudo
    each = shown // int(asked.removeprefix("1/")) // data.num_asking
    return each if each >= 2 and each * data.num_asking >= 2 * pssl.batch_size else "fresh"


class Pools:
    """The pools of a run's stages, or of all runs of a comparison. Each is made once."""

    def __init__(self, folder: Path | None = None, *, uniform: Pools | None = None) -> None:
        """folder: for pools that are not kept in memory. uniform: pools whose uniform-label pool is used for every seed."""
        self._folder, self._uniform = folder, uniform
        self._pools: dict[str, Pool | None] = {}

    def of(self, stage: str, task: Task) -> Pool | None:
        """The pool of a stage of the task's config; None if the stage has none.

        Raises UserError for a pool that was made for something else or is too small, see `check_pool`.
        """
        if stage not in ("pp", "p-ssl") or self._asked(stage, task) == "fresh":
            return None
        if stage == "pp" and self._uniform is not None:
            return self._uniform.of(stage, task)
        if stage not in self._pools:
            self._pools[stage] = self._new(stage, task)
        return self._pools[stage]

    def _asked(self, stage: str, task: Task) -> int | str:
        options = task.config.synthesis
        return options.images if stage == "pp" else options.images_per_target

    def _new(self, stage: str, task: Task) -> Pool | None:
        config, data = task.config, task.data
        options = config.synthesis
        if stage == "pp":
            count = pool_size(options.images, config.pp)
        else:
            count = images_per_target(config, data)
            count = count * data.num_asking if isinstance(count, int) else count
        in_folder = options.pool not in ("memory", "run")
        if not in_folder and not isinstance(count, int):
            return None
        recipe = (
            uniform_recipe(config, task.source)
            if stage == "pp"
            else conditioned_recipe(task, unlabelled=True)
        )
        if in_folder and (pool := self._found(stage, task, recipe, count)):
            return pool
        if not isinstance(count, int):
            return None
        made = [pool for pool in self._pools.values() if pool is not None]
        kept = sum(pool.num_bytes for pool in made if isinstance(pool.store, MemoryStore))
        pool = memory_pool(recipe, count)
        if options.pool != "run" and kept + pool.num_bytes <= options.memory_limit * 2**30:
            return pool
        if self._folder is None:
            raise ValueError("a pool on disk needs a folder")
        return folder_pool(recipe, count, self._folder / stage)

    def _found(self, stage: str, task: Task, recipe: Recipe, count: int | str) -> Pool | None:
        """The pool of a stage in the folder that the config names; raises UserError as `check_pool`.

        None for P-SSL's where the folder has PP's pool alone and the config no number of images for each target: it is made here.
        """
        options = task.config.synthesis
        folder = Path(options.pool)
        path = folder / stage if (folder / stage).is_dir() else folder
        part = isinstance(self._asked(stage, task), str)
        if part and stage == "p-ssl" and path == folder and (folder / "pp").is_dir():
            return None
        pool = open_pool(path, device=task.device)
        if part or not isinstance(count, int):
            # A fraction of the images shown applies only to a pool made here; an existing pool is used in full.
            count = len(pool)
            if stage == "p-ssl" and pool.law["labels"]["law"] == "uniform":
                return None
        check_pool(pool, recipe, count, f"synthesis.pool = {str(path)!r}")
        return pool.first(count)
