"""Training from a pool: the same bits wherever it is stored, however batches are scheduled, wherever a run is resumed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from on_disk import ready, same, stop_after, trained, trained_once, weights
from ptgm_fast import kernels
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.generators import Generator
from ptgm_fast.profiling import read_profile
from ptgm_fast.runs.pools import Pools, conditioned_recipe, images_per_target, uniform_recipe
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.runs.task import build_source, build_task
from ptgm_fast.runs.train import make_stage, train
from ptgm_fast.sampling import PoolOrder, Recipe, derive_seed, memory_pool, open_pool
from ptgm_fast.sampling import pool as pool_module
from ptgm_fast.training.context import Context, Interrupted

Tiny = Callable[..., RunConfig]
# 12 steps of 16 from 100 images, 20 steps of 8 from 15 targets x 3.
POOLS = ("synthesis.images=100", "synthesis.images_per_target=3")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SHARD_IMAGES", 64)


def test_weights_are_the_same_wherever_the_pool_is(tiny: Tiny, tmp_path: Path) -> None:
    memory = train(tiny(*POOLS), tmp_path / "memory")
    assert not (tmp_path / "memory" / "pool").exists()
    run = train(tiny(*POOLS, "synthesis.pool=run"), tmp_path / "run")
    train(tiny(*POOLS, "synthesis.memory_limit=0"), tmp_path / "limited")
    # Made earlier by another command, with more images than are used.
    made = tmp_path / "made"
    made.mkdir()
    synthesize(tiny(), 150, made / "pp", format="pool")
    synthesize(tiny(), 90, made / "p-ssl", format="pool", conditioned=True)
    path = train(tiny(*POOLS, f"synthesis.pool={made}"), tmp_path / "path")
    for name in ("run", "limited", "path"):
        assert same(weights(tmp_path / name), weights(tmp_path / "memory")), name
    assert not same(trained(tiny()), weights(tmp_path / "memory"))
    # A pool that one run kept can serve another.
    assert len(open_pool(tmp_path / "limited" / "pool" / "pp")) == 100
    kept = f"synthesis.pool={tmp_path / 'run' / 'pool'}"
    train(tiny(*POOLS, kept), tmp_path / "again")
    assert same(weights(tmp_path / "again"), weights(tmp_path / "memory"))
    for summary, made_images in ((memory, (100, 45)), (run, (100, 45)), (path, (0, 0))):
        pp, pssl = summary["stages"]["pp"], summary["stages"]["p-ssl"]
        assert (pp["images_synthesized"], pssl["images_synthesized"]) == made_images
        assert (pp["images_served"], pssl["images_served"]) == (192, 160)
        assert pp["reuse"] == pytest.approx(1.92)
        assert (pp["pool_bytes"], pssl["pool_bytes"]) == (6400, 45 * 64)
        assert (pp["seconds_saved"] is None) == (made_images == (0, 0))
    assert memory["stages"]["pp"]["seconds_saved"] > 0


def test_an_image_behind_a_sample_is_the_pools(tiny: Tiny) -> None:
    """Computed step by step: the order, the images, the views addressed by the samples' numbers."""
    config = tiny(*POOLS)
    task = build_task(config)
    stage = ready(make_stage("pp", task, task.new_network()))
    images, labels = memory_pool(uniform_recipe(config, task.source), 100).take(torch.arange(100))
    for step in (0, 5, 6, 11):
        batch = stage.make_batch(step)
        numbers = PoolOrder(100, seed=0, purpose="pp/pool order").indices(16 * step, 16)
        assert len(set(numbers.tolist())) == 16
        expected, _ = kernels.views(
            images[numbers],
            config.pp.views,
            seed=derive_seed(0, "pp/views"),
            start=16 * step,
        )
        assert torch.equal(batch.inputs, expected)
        assert torch.equal(batch.labels, labels[numbers])
    pssl = ready(make_stage("p-ssl", task, task.new_network()))
    _, targets = memory_pool(conditioned_recipe(task), 45).take(torch.arange(45))
    for step in (0, 7):
        numbers = PoolOrder(45, seed=0, purpose="p-ssl/pool order").indices(8 * step, 8)
        assert torch.equal(pssl.make_batch(step).provenance, targets[numbers])


def test_weights_are_the_same_however_batches_are_scheduled(tiny: Tiny) -> None:
    never = trained(tiny(*POOLS, "engine.overlap=never"))
    for depth in (1, 3, 8):
        ahead = tiny(*POOLS, "engine.overlap=always", f"engine.depth={depth}")
        assert same(trained(ahead), never), depth


@pytest.mark.parametrize("where", ["memory", "run"])
@pytest.mark.parametrize(("stage", "step"), [("pp", 2), ("pp", 9), ("p-ssl", 3), ("p-ssl", 19)])
def test_a_resumed_run_ends_with_the_same_weights(
    tiny: Tiny, tmp_path: Path, where: str, stage: str, step: int
) -> None:
    config = tiny(*POOLS, f"synthesis.pool={where}")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", context=stop_after(stage, step))
    summary = train(config, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), trained_once(tiny(*POOLS)))
    assert summary["stages"]["pp"]["images_synthesized"] == 100


def test_images_are_made_as_they_are_needed(tiny: Tiny, tmp_path: Path) -> None:
    """Training does not wait for the whole pool: its first epoch is in the order of the blocks."""
    task = build_task(tiny("synthesis.images=500", "pp.steps=60"))
    stage = ready(make_stage("pp", task, task.new_network()))
    assert stage.pool is not None
    made = []
    for step in range(60):
        stage.make_batch(step)
        made.append(stage.pool.made)
    assert made[:9] == [64, 64, 64, 64, 128, 128, 128, 128, 192]
    assert made[-1] == made[31] == 512


def test_a_shard_that_was_lost_is_made_again(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(*POOLS, "synthesis.pool=run")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", context=stop_after("pp", 10))
    (tmp_path / "run" / "pool" / "pp" / "images-00000.npy").unlink()
    train(config, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), trained_once(tiny(*POOLS)))


def test_profile_tells_what_was_made_and_served(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(*POOLS), tmp_path / "run", profile=True)
    stages = {s.name: s for s in read_profile(tmp_path / "run").stages}
    assert (stages["pp"].images_synthesized, stages["pp"].images_served) == (128, 192)
    assert (stages["p-ssl"].images_synthesized, stages["p-ssl"].images_served) == (64, 160)
    assert any(span.path[-1] == "pool" for span in stages["pp"].spans)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["synthesis.images=31"], "31 images is too small for pp.batch_size = 16.*32 images"),
        (["synthesis.images_per_target=2", "p_ssl.batch_size=16"], "30 images is too small for p_ssl"),
        (["synthesis.pool=run"], "has no effect while every image is fresh"),
        (["synthesis.images=1"], "at least 2"),
        (["synthesis.images=frsh"], "synthesis.images"),
        (["synthesis.images=100", "synthesis.pool=nowhere"], "holds no pool"),
        (["synthesis.images=151", "synthesis.pool=POOL"], "holds 150 images, 151 are needed"),
        (["synthesis.images=100", "synthesis.pool=POOL", "source.truncation=0.5"], "truncation: nothing there, 0.5 requested"),
        (["synthesis.images=100", "synthesis.images_per_target=3", "synthesis.pool=POOL"], 'labels.law: "uniform" there'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_there_is_a_folder(
    tiny: Tiny, tmp_path: Path, settings: list[str], message: str
) -> None:
    synthesize(tiny(seed=4), 150, tmp_path / "pool", format="pool")
    settings = [s.replace("POOL", str(tmp_path / "pool")) for s in settings]
    with pytest.raises(UserError, match=f"(?s){message}"):
        train(tiny(*settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        # 20 steps of 8 are 160 images, for 15 targets.
        (["synthesis.images_per_target=1/2"], 5),
        (["synthesis.images_per_target=1/4"], 2),
        # One for each target image is not enough, nor are 30 for two batches of 16.
        (["synthesis.images_per_target=1/8"], "fresh"),
        (["synthesis.images_per_target=1/8", "p_ssl.batch_size=16"], "fresh"),
        (["synthesis.images_per_target=1/8", "training.steps=60"], 4),
        (["synthesis.images_per_target=7"], 7),
        (["synthesis.images_per_target=fresh"], "fresh"),
        # Half of the batch is of the 30 images a class that the split leaves, and they ask, too.
        (["synthesis.images_per_target=1/2", "data.unlabelled=rest", "training.steps=600"], 26),
    ],
)
def test_a_part_of_what_p_ssl_shows(tiny: Tiny, settings: list[str], each: int | str) -> None:
    task = build_task(tiny(*settings))
    assert images_per_target(task.config, task.data) == each
    pool = Pools().of("p-ssl", task)
    assert (len(pool) if pool else "fresh") == (
        each * task.data.num_asking if isinstance(each, int) else "fresh"
    )


def test_a_part_and_a_folder(tiny: Tiny, tmp_path: Path) -> None:
    """Of a folder's pool for P-SSL all images are used; where it has PP's alone, P-SSL's is made here."""
    synthesize(tiny(), 100, tmp_path / "pools" / "pp", format="pool")
    part = ("synthesis.images_per_target=1/4", f"synthesis.pool={tmp_path / 'pools'}")
    for path in (tmp_path / "pools", tmp_path / "pools" / "pp"):
        task = build_task(tiny("synthesis.images=100", part[0], f"synthesis.pool={path}"))
        pools = Pools()
        here, made = (pools.of(stage, task) for stage in ("pp", "p-ssl"))
        assert here is not None
        assert made is not None
        assert (here.recipe, len(here)) == (None, 100)
        assert made.recipe is not None
        assert len(made) == 2 * 15
    synthesize(tiny(), 90, tmp_path / "pools" / "p-ssl", format="pool", conditioned=True)
    found = Pools().of("p-ssl", build_task(tiny("synthesis.images=100", *part)))
    assert found is not None
    assert (found.recipe, len(found)) == (None, 90)
    # Also where the part is too small for a pool made here.
    smaller = ("synthesis.images=100", "synthesis.images_per_target=1/8", part[1])
    found = Pools().of("p-ssl", build_task(tiny(*smaller)))
    assert found is not None
    assert len(found) == 90


def test_a_pool_of_another_seed_serves(tiny: Tiny, tmp_path: Path) -> None:
    """A run's seed determines its order and views only, so a pool is made once for all seeds."""
    synthesize(tiny(seed=4), 150, tmp_path / "pool", format="pool")
    settings = ("synthesis.images=100", f"synthesis.pool={tmp_path / 'pool'}")
    a, b = (trained(tiny(*settings, seed=seed)) for seed in (0, 1))
    assert not same(a, b)


class Noisy(Generator):
    """A generator that adds noise from torch's RNG to its images."""

    def __init__(self, inner: Generator) -> None:
        super().__init__()
        self.inner, self.card = inner, inner.card

    def generate(self, *inputs: Tensor, **options: object) -> Tensor:
        images = self.inner.generate(*inputs, **options)  # type: ignore[arg-type]
        return images + 0.2 * torch.randn_like(images)


def test_a_generator_that_draws_from_torch_has_addressed_images_in_a_pool(tiny: Tiny) -> None:
    source = build_source(tiny())
    source.generator = Noisy(source.generator)
    recipe = Recipe(source, seed=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = memory_pool(recipe, 128).take(torch.arange(128))[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    backwards = memory_pool(recipe, 128).take(torch.arange(127, -1, -1))[0]
    assert torch.equal(backwards.flip(0), first)


def test_a_comparison_has_one_pool_for_its_methods(tiny: Tiny) -> None:
    pools = Pools()
    config = tiny(*POOLS)
    task = build_task(config)
    assert pools.of("pp", task) is pools.of("pp", task)
    assert pools.of("supervised", task) is None
    assert Pools().of("pp", build_task(tiny())) is None
    other = build_task(tiny(*POOLS, seed=1))
    assert Pools(uniform=pools).of("pp", other) is pools.of("pp", task)
    assert Pools(uniform=pools).of("p-ssl", other) is not pools.of("p-ssl", task)


@pytest.mark.parametrize(
    ("images", "size"), [("fresh", None), ("100", 100), ("1/1", 192), ("1/4", 48), ("1/9", 32)]
)
def test_a_pool_is_a_part_of_what_is_shown(tiny: Tiny, images: str, size: int | None) -> None:
    """192 samples of batches of 16: a part is never less than two batches."""
    pool = Pools().of("pp", build_task(tiny(f"synthesis.images={images}")))
    assert (None if pool is None else len(pool)) == size


@pytest.mark.parametrize("images", ["1/0", "2/3", "1/x", "0.25", "1"])
def test_what_is_no_size_of_a_pool(tiny: Tiny, images: str) -> None:
    with pytest.raises(UserError, match=r"synthesis\.images"):
        tiny(f"synthesis.images={images}")


def test_of_a_folders_pool_all_are_shown(tiny: Tiny, tmp_path: Path) -> None:
    synthesize(tiny(), 150, tmp_path / "pool", format="pool")
    config = tiny("synthesis.images=1/4", f"synthesis.pool={tmp_path / 'pool'}")
    pool = Pools().of("pp", build_task(config))
    assert pool is not None
    assert len(pool) == 150


def test_the_metrics_of_a_resume_are_those_of_the_whole(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(*POOLS), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tiny(*POOLS), tmp_path / "run", context=stop_after("pp", 7))
    train(tiny(*POOLS), tmp_path / "run", resume=True, context=Context())

    def losses(name: str) -> list[tuple[str, int, float]]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [(r["stage"], r["step"], r["loss"]) for r in records if "loss" in r]

    assert losses("run") == losses("whole")
