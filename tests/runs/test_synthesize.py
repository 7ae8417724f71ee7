"""Labelled pseudo images on disk."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptgm_fast import data
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.runs.estimate import estimate
from ptgm_fast.runs.synthesize import synthesize
from ptgm_fast.sampling import open_pool
from ptgm_fast.sampling import parts as parts_module
from ptgm_fast.sampling import pool as pool_module

Tiny = Callable[..., RunConfig]
FORMATS = ("folder", "pool", "webdataset")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SHARD_IMAGES", 128)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def manifest(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_uniform_labels_make_an_image_folder(tiny: Tiny, tmp_path: Path) -> None:
    summary = synthesize(tiny(), 90, tmp_path / "s")
    records = manifest(tmp_path / "s")
    assert [r["index"] for r in records] == list(range(90))
    assert summary["count"] == 90
    assert {r["label"] for r in records} == set(range(6))
    for record in records:
        with Image.open(tmp_path / "s" / record["file"]) as image:
            assert image.size == (8, 8)
        assert record["file"].startswith(f"{record['label']}_{record['class']}/")
    loaded = data.load(f"folder:{tmp_path / 's'}")
    assert loaded.images.shape == (90, 1, 8, 8)
    assert loaded.labels.bincount().tolist() == np.bincount([r["label"] for r in records]).tolist()


def test_more_images_begin_with_the_same_ones(tiny: Tiny, tmp_path: Path) -> None:
    for name, count in (("few", 20), ("many", 300), ("again", 20)):
        synthesize(tiny(), count, tmp_path / name)
    first = {
        r["file"]: (tmp_path / "few" / r["file"]).read_bytes() for r in manifest(tmp_path / "few")
    }
    for file, content in first.items():
        assert (tmp_path / "many" / file).read_bytes() == content
    sums = [
        json.loads((tmp_path / n / "summary.json").read_text())["pixels_sha256"]
        for n in ("few", "again")
    ]
    assert sums[0] == sums[1]


def test_conditioned_on_target_images(tiny: Tiny, tmp_path: Path) -> None:
    synthesize(tiny(), 30, tmp_path / "s", conditioned=True)
    records = manifest(tmp_path / "s")
    assert {r["class"] for r in records} == {"0", "1", "2"}
    # 15 labelled images, each visited twice in 30 samples.
    assert sorted(r["target_index"] for r in records) == sorted(list(range(15)) * 2)
    for record in records:
        assert list(record["soft_label"].values()) == sorted(
            record["soft_label"].values(), reverse=True
        )
        assert set(record["soft_label"]) <= set("abcdef")


def test_an_existing_folder_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        synthesize(tiny(), 3, tmp_path / "s")
    with pytest.raises(UserError, match="at least 1"):
        synthesize(tiny(), 0, tmp_path / "t")


# Any format: divided, stopped, damaged ----------------------------------------------------------------------------------


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_shares_without_coordination_end_in_the_same_bytes(
    tiny: Tiny, tmp_path: Path, format: str, conditioned: bool
) -> None:
    whole = synthesize(tiny(), 600, tmp_path / "one", format=format, conditioned=conditioned)
    assert "missing_parts" not in whole
    outcomes = [
        synthesize(
            tiny(), 600, tmp_path / "many", format=format, conditioned=conditioned, shard=(i, 3)
        )
        for i in (3, 1, 2)
    ]
    assert [len(o.get("missing_parts", ())) > 0 for o in outcomes] == [True, True, False]
    assert outcomes[-1] == whole
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    # Run again: everything is already there.
    told: list[tuple[int, int]] = []
    again = synthesize(
        tiny(),
        600,
        tmp_path / "many",
        format=format,
        conditioned=conditioned,
        on_images=lambda done, total: told.append((done, total)),
    )
    assert again == whole
    assert told == [(600, 600)]
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("at", range(1, 7))
def test_a_full_disk_at_any_write_is_continued(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, at: int
) -> None:
    synthesize(tiny(), 300, tmp_path / "whole", format=format)
    write, calls = parts_module.write_atomically, []

    def failing(path: Path, data: bytes, **options: object) -> None:
        calls.append(path)
        if len(calls) == at:
            raise OSError(28, "No space left on device", str(path))
        write(path, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(parts_module, "write_atomically", failing)
    with pytest.raises(OSError, match="No space left"):
        synthesize(tiny(), 300, tmp_path / "s", format=format)
    synthesize(tiny(), 300, tmp_path / "s", format=format)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.mark.parametrize("when", ["finished", "unfinished"])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_missing_or_damaged_is_named_and_made_again(
    tiny: Tiny, tmp_path: Path, format: str, when: str
) -> None:
    share = (1, 1) if when == "finished" else (1, 2)
    out = tmp_path / "s"
    synthesize(tiny(), 1200, out, format=format, shard=share)
    before = contents(out)
    victims = sorted(p for p in out.rglob("*") if p.suffix in (".png", ".npy", ".tar"))
    lost, broken = victims[0], victims[-1]
    lost.unlink()
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    said: list[str] = []
    synthesize(tiny(), 1200, out, format=format, shard=share, on_notice=said.append)
    assert contents(out) == before
    for file in (lost, broken):
        assert any(str(file.relative_to(out)) in line for line in said), said
    # Nothing else was reported.
    assert len(said) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_of_something_else_is_refused_with_both_values(
    tiny: Tiny, tmp_path: Path, format: str
) -> None:
    for share in ((1, 2), (1, 1)):
        synthesize(tiny(), 300, tmp_path / "s", format=format, shard=share)
        before = contents(tmp_path / "s")
        with pytest.raises(UserError, match="seed: 0 there, 5 requested"):
            synthesize(tiny(seed=5), 300, tmp_path / "s", format=format)
        with pytest.raises(UserError, match=r"there, .* requested"):
            synthesize(tiny(), 300, tmp_path / "s", format=format, conditioned=True)
        with pytest.raises(UserError, match="count: 300 there, 200 requested"):
            synthesize(tiny(), 200, tmp_path / "s", format=format)
        assert contents(tmp_path / "s") == before
    other = {"folder": "pool", "pool": "webdataset", "webdataset": "folder"}[format]
    with pytest.raises(UserError):
        synthesize(tiny(), 300, tmp_path / "s", format=other)
    assert contents(tmp_path / "s") == before
    for shard, message in (((0, 2), "from 1 to N"), ((3, 2), "from 1 to N")):
        with pytest.raises(UserError, match=message):
            synthesize(tiny(), 300, tmp_path / "t", format=format, shard=shard)
    with pytest.raises(UserError, match="unknown format 'zip'; accepted: folder, pool, webdataset"):
        synthesize(tiny(), 300, tmp_path / "t", format="zip")


def test_a_pool_on_disk_grows(tiny: Tiny, tmp_path: Path) -> None:
    synthesize(tiny(), 300, tmp_path / "grows", format="pool")
    synthesize(tiny(), 500, tmp_path / "grows", format="pool")
    synthesize(tiny(), 500, tmp_path / "at once", format="pool")
    assert contents(tmp_path / "grows") == contents(tmp_path / "at once")


def tar_samples(out: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for entry in tar:
                key, suffix = entry.name.split(".")
                file = tar.extractfile(entry)
                assert file is not None
                samples.setdefault(key, {})[suffix] = file.read()
    return samples


@pytest.mark.parametrize("conditioned", [False, True])
def test_tar_shards_hold_the_pools_images(tiny: Tiny, tmp_path: Path, conditioned: bool) -> None:
    """The layout that WebDataset documents: consecutive files with the same base name form a sample."""
    synthesize(tiny(), 300, tmp_path / "tar", format="webdataset", conditioned=conditioned)
    synthesize(tiny(), 300, tmp_path / "pool", format="pool", conditioned=conditioned)
    pool = open_pool(tmp_path / "pool")
    samples = tar_samples(tmp_path / "tar")
    assert list(samples) == [f"{n:09d}" for n in range(300)]
    images, labels = pool.take(torch.arange(300))
    for number, sample in enumerate(samples.values()):
        assert list(sample) == ["png", "cls", "json"]
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert np.array_equal(pixels, images[number, 0].numpy())
        record = json.loads(sample["json"])
        assert record["index"] == number
        assert int(sample["cls"]) == record["label"]
        assert record["target_index" if conditioned else "label"] == int(labels[number])


@pytest.mark.parametrize("conditioned", [False, True])
def test_webdataset_reads_tar_shards(tiny: Tiny, tmp_path: Path, conditioned: bool) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    synthesize(tiny(), 300, tmp_path / "s", format="webdataset", conditioned=conditioned)
    expected = tar_samples(tmp_path / "s")
    shards = sorted(map(str, (tmp_path / "s").glob("*.tar")))
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in found] == list(expected)
    for sample in found:
        plain = expected[sample["__key__"]]
        assert sample["cls"] == int(plain["cls"])
        assert sample["json"] == json.loads(plain["json"])
        pixels = np.asarray(Image.open(io.BytesIO(plain["png"])))
        assert np.array_equal(np.asarray(sample["png"].convert("L")), pixels)


@pytest.mark.parametrize("conditioned", [False, True])
def test_hugging_face_datasets_reads_tar_shards(
    tiny: Tiny, tmp_path: Path, conditioned: bool
) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    synthesize(tiny(), 300, tmp_path / "s", format="webdataset", conditioned=conditioned)
    expected = tar_samples(tmp_path / "s")
    found = datasets.load_dataset(
        "webdataset",
        data_files={"train": sorted(map(str, (tmp_path / "s").glob("*.tar")))},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(found) == 300
    for sample in found:
        plain = expected[sample["__key__"]]
        assert int(sample["cls"]) == int(plain["cls"])
        pixels = np.asarray(Image.open(io.BytesIO(plain["png"])))
        assert np.array_equal(np.asarray(sample["png"]), pixels)


@pytest.mark.parametrize("format", FORMATS)
def test_the_cost_is_told_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = estimate(tiny(), 1000, format=format, conditioned=True)
    assert not list(tmp_path.glob("never*"))
    assert found.images_per_second > 0
    synthesize(tiny(), 1000, tmp_path / "s", format=format, conditioned=True)
    written = sum(len(data) for data in contents(tmp_path / "s").values())
    assert 0.5 < found.disk_bytes / written < (8 if format == "folder" else 1.5)
    assert found.memory_bytes > 2**20
