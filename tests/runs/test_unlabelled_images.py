"""Real unlabelled target images in P-SSL: they condition the generator, and make up a share of each batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from on_disk import ready, same, trained
from ptgm_fast import kernels
from ptgm_fast.config import RunConfig, with_method
from ptgm_fast.errors import UserError
from ptgm_fast.runs.compare import DEFAULT_METHODS, Asked, compare
from ptgm_fast.runs.task import build_task
from ptgm_fast.runs.train import make_stage, train
from ptgm_fast.sampling import AddressedOrder, conditioning_table, derive_seed
from ptgm_fast.spans import no_spans
from ptgm_fast.training.distributed import ProcessGroup
from ptgm_fast.training.p_ssl import PseudoSemiSupervised

Tiny = Callable[..., RunConfig]
COUNT = 7


@pytest.fixture
def unlabelled(tmp_path: Path) -> str:
    """Images without class folders, at two depths."""
    rng = np.random.default_rng(5)
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (9, 8), dtype=np.uint8)
        name = f"deep/{i}.png" if i % 2 else f"{i}.png"
        Image.fromarray(pixels).save(tmp_path / "more" / name)
    return f"data.unlabelled=folder:{tmp_path / 'more'}"


def stage_of(config: RunConfig, group: ProcessGroup | None = None) -> PseudoSemiSupervised:
    task = build_task(config)
    stage = make_stage("p-ssl", task, task.new_network(), group)
    assert isinstance(stage, PseudoSemiSupervised)
    return stage


@pytest.mark.parametrize("label", ["condition", "classifier"])
def test_a_batch_has_pseudo_samples_and_real_images(
    tiny: Tiny, unlabelled: str, label: str
) -> None:
    config = tiny(unlabelled, "p_ssl.method=uda", "p_ssl.batch_size=8", "p_ssl.real_share=0.25")
    config = config.model_copy(
        update={"p_ssl": config.p_ssl.model_copy(update={"source_label": label})}
    )
    task = build_task(config)
    data, further = task.data, task.data.unlabelled
    assert further is not None
    assert len(further) == COUNT
    assert further.form == data.train.form
    stage = stage_of(config)
    ready(stage)
    # All of them condition the generator, the labelled ones first.
    together = torch.cat([data.train.images, further.images])  # type: ignore[list-item]
    options = {"temperature": config.p_ssl.pcs_temperature}
    table = conditioning_table(task.source, together, **options)
    assert stage.table.soft_labels.allclose(table.soft_labels, atol=1e-6)
    asked: set[int] = set()
    for step in range(6):
        batch = stage.make_batch(step)
        assert len(batch.weak) == len(batch.strong) == len(batch.provenance) == 8
        asked |= set(batch.provenance[:6].tolist())
        real = batch.provenance[6:] - len(data.train)
        assert real.min() >= 0
        expected = kernels.views(
            further.images[real],
            config.p_ssl.weak_views,
            config.p_ssl.strong_views,
            seed=derive_seed(config.seed, "p-ssl/real/views"),
            start=2 * step,
            mean=data.mean,
            std=data.std,
        )
        assert batch.weak[6:].equal(expected[0])
        assert batch.strong[6:].equal(expected[1])
        assert batch.soft_labels.equal(stage.table.soft_labels[batch.provenance])
    # 36 samples from 17 images: every image has been used.
    assert asked == set(range(len(data.train) + COUNT))
    assert stage.pseudo_images_per_step == 6
    assert stage.images_synthesized == 6 * config.training.steps


def test_the_classifier_labels_the_views_of_real_images_too(tiny: Tiny, unlabelled: str) -> None:
    stage = ready(stage_of(tiny(unlabelled, "p_ssl.method=source-head")))
    batch = stage.make_batch(3)
    expected = stage.source_logits(no_spans, batch.weak).softmax(1)  # type: ignore[attr-defined]
    assert batch.soft_labels.equal(expected)


@pytest.mark.parametrize(("size", "share"), [(8, 0.5), (8, 0.25), (9, 0.4), (20, 0.7)])
def test_processes_share_out_what_one_would_do(
    tiny: Tiny, unlabelled: str, size: int, share: float
) -> None:
    stage = stage_of(tiny(unlabelled, f"p_ssl.batch_size={size}", f"p_ssl.real_share={share}"))
    real = round(size * share)
    for step in (0, 3):
        assert stage.shares(step) == ((step * (size - real), size - real), (step * real, real))
        for processes in (2, 3):
            parts = []
            for rank in range(processes):
                stage.group = ProcessGroup(rank, processes)
                pseudo, images = stage.shares(step)
                assert pseudo[1] >= 1
                assert pseudo[1] + images[1] == stage.group.share(size)[1]
                parts.append((range(pseudo[0], sum(pseudo)), range(images[0], sum(images))))
            stage.group = ProcessGroup()
            for kind, (first, count) in enumerate(stage.shares(step)):
                assert [n for part in parts for n in part[kind]] == list(
                    range(first, first + count)
                )


def test_agreement_counts_samples_of_labelled_images(tiny: Tiny, unlabelled: str) -> None:
    stage = stage_of(tiny(unlabelled))
    labels = stage.labels
    number = len(labels)
    logits = torch.nn.functional.one_hot(labels[[0, 1, 2, 3]], stage.data.train.num_classes).float()
    wrong = logits.roll(1, dims=1)
    provenance = torch.tensor([0, 1, number, number + 1])
    assert float(stage.agreement(logits, provenance)) == 1.0
    mixed = torch.stack([logits[0], wrong[1], logits[2], logits[3]])
    assert float(stage.agreement(mixed, provenance)) == 0.5
    assert float(stage.agreement(mixed, provenance + number)) == 0.0


@pytest.mark.parametrize("images", ["fresh", "3"])
def test_a_run_with_unlabelled_images(
    tiny: Tiny, unlabelled: str, tmp_path: Path, images: str
) -> None:
    config = tiny(unlabelled, f"synthesis.images_per_target={images}")
    summary = train(config, tmp_path / "run")
    assert summary["target"]["unlabelled_images"] == COUNT
    plain = tiny(f"synthesis.images_per_target={images}")
    assert not same(trained(config), trained(plain))


def test_the_bytes_of_a_run_without_them_stay(tiny: Tiny) -> None:
    """Without unlabelled images, every batch has the inputs that an order over the labelled images alone gives."""
    stage = ready(stage_of(tiny()))
    size = stage.pssl.batch_size
    *_, start, provenance = stage.batch_inputs(5)  # type: ignore[misc]
    assert start == 5 * size
    order = AddressedOrder(len(stage.data.train), seed=stage.seed, purpose="p-ssl/order")  # type: ignore[attr-defined]
    assert provenance.equal(order.indices(5 * size, size))
    assert replace(stage.data, unlabelled=None).asking == (stage.data.train.images,)  # type: ignore[attr-defined]


def test_what_has_no_effect_or_leaks_is_refused(tiny: Tiny, unlabelled: str, blobs: Path) -> None:
    with pytest.raises(UserError, match=r"real_share has no effect"):
        tiny("p_ssl.real_share=0.25")
    with pytest.raises(UserError, match="tested on"):
        tiny(f"data.unlabelled=npz:{blobs}")
    (Path(unlabelled.partition("folder:")[2]) / "deep" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"deep/x\.png"):
        build_task(tiny(unlabelled))


def test_what_the_split_leaves_is_unlabelled(tiny: Tiny) -> None:
    """The parts make up all images; labels are removed; the labelled images come first."""
    plain, task = build_task(tiny()), build_task(tiny("data.unlabelled=rest"))
    data, further = task.data, task.data.unlabelled
    assert further is not None
    assert (len(data.train), len(further), set(further.labels.tolist())) == (15, 30, {0})
    for part in ("train", "validation", "test"):
        assert getattr(data, part).images.equal(getattr(plain.data, part).images)
    parts = (data.train, data.validation, data.test, further)
    together = torch.cat([part.images for part in parts])  # type: ignore[misc]
    assert sorted(together.flatten(1).tolist()) == sorted(task.read.images.images.flatten(1).tolist())  # type: ignore[union-attr] # fmt: skip
    assert [len(images) for images in data.asking] == [15, 30]
    with pytest.raises(UserError, match=r"leaves no images .* lower data\.labels_per_class"):
        build_task(tiny("data.unlabelled=rest", "data.labels_per_class=all"))


@pytest.mark.parametrize("images", ["fresh", "3"])
def test_the_row_of_real_images_is_what_train_gives(
    tiny: Tiny, tmp_path: Path, images: str
) -> None:
    """Beside a row without them, with which it shares PP, and no pool of what its images ask for."""
    settings = (f"synthesis.images_per_target={images}", "synthesis.pool=run")
    config = tiny(*settings[: 1 + (images != "fresh")], seed=3)
    methods = ("pp+p-ssl", "pp+p-ssl+real")
    report = compare(config, Asked(methods, (3,)), tmp_path / "c")
    for method in methods:
        summary = train(with_method(config, method), tmp_path / method)
        row = report["methods"][method]
        assert row["test_accuracy"] == [summary["target"]["test_accuracy"]]
        assert row["ece"] == summary["target"]["ece"]
        assert summary["target"]["unlabelled_images"] == 30 * method.endswith("real")
    assert "pp+p-ssl+real" not in DEFAULT_METHODS


def test_two_kinds_of_unlabelled_images_are_refused(tiny: Tiny, unlabelled: str) -> None:
    with pytest.raises(UserError, match=r"data\.unlabelled = .* leave out one of them"):
        with_method(tiny(unlabelled), "pp+p-ssl+real")
