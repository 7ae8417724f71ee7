"""Data sets that other packages wrote: Hugging Face's datasets, WebDataset's shards."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptgm_fast import data
from ptgm_fast.data import OnDisk
from ptgm_fast.errors import UserError

NAMES = ("owl", "elk", "never seen", "cat")
LABELS = [0, 3, 1, 1, 0, 3, 1]
RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8) for _ in LABELS]


def same_images(loaded: data.ImageSet) -> None:
    for image, pixels in zip(loaded.images, PIXELS, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.fixture
def saved(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(NAMES))}
    )
    rows = {"picture": [Image.fromarray(p) for p in PIXELS], "kind": LABELS}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_folder_of_save_to_disk(saved, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "d", num_shards=2)
    told: list[str] = []
    for workers in (1, 3):
        loaded = data.load(f"datasets:{tmp_path / 'd'}", workers=workers, on_notice=told.append)
        assert loaded.class_names == ("owl", "elk", "cat")
        assert loaded.labels.tolist() == [0, 2, 1, 1, 0, 2, 1]
        same_images(loaded)
    assert told == []


def test_splits_of_a_saved_dict(saved, tmp_path: Path) -> None:
    import datasets

    both = {"train": saved, "test": saved.select(range(3))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "d")
    assert len(data.load(f"datasets:{tmp_path / 'd'}?split=test")) == 3
    for query in ("", "?split=dev"):
        with pytest.raises(UserError, match=r"split=train\|test"):
            data.load(f"datasets:{tmp_path / 'd'}{query}")


def test_parquet_files_with_columns_by_name(saved, tmp_path: Path) -> None:
    words = [f"class {n}" for n in LABELS]
    table = saved.add_column("words", words)
    (tmp_path / "d").mkdir()
    for part in (0, 1):
        rows = table.select(range(4) if part == 0 else range(4, 7))
        rows.to_parquet(tmp_path / "d" / f"train-0000{part}-of-00002.parquet")
    table.select([0]).to_parquet(tmp_path / "d" / "test-00000-of-00001.parquet")
    loaded = data.load(f"datasets:{tmp_path / 'd'}?split=train")
    assert loaded.class_names == ("owl", "elk", "cat")
    same_images(loaded)
    loaded = data.load(f"datasets:{tmp_path / 'd'}?split=train&image=picture&label=words")
    assert loaded.class_names == ("class 0", "class 1", "class 3")
    assert len(data.load(f"datasets:{tmp_path / 'd'}/test-00000-of-00001.parquet")) == 1
    with pytest.raises(UserError, match=r"several splits \(test, train\)"):
        data.load(f"datasets:{tmp_path / 'd'}")


def test_what_a_data_set_lacks_is_said(saved, tmp_path: Path) -> None:
    saved.save_to_disk(tmp_path / "d")
    for query, message in (
        ("?label=nothing", r"no column 'nothing'.*kind \(ClassLabel\)"),
        ("?split=train", "no splits"),
        ("?name=x", "unknown option 'name'"),
    ):
        with pytest.raises(UserError, match=message):
            data.load(f"datasets:{tmp_path / 'd'}{query}")
    saved.add_column("other", LABELS).rename_column("kind", "x").remove_columns("x").save_to_disk(
        tmp_path / "e"
    )
    with pytest.raises(UserError, match=r"label\? Its columns: picture \(Image\), other"):
        data.load(f"datasets:{tmp_path / 'e'}")
    (tmp_path / "f").mkdir()
    for path, message in ((tmp_path / "f", "cannot be read"), (tmp_path / "g", "does not exist")):
        with pytest.raises(UserError, match=message):
            data.load(f"datasets:{path}")


def test_a_path_in_a_data_set_is_not_followed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet

    Image.fromarray(PIXELS[0]).save(tmp_path / "secret.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}] * 2, "label": [0, 1]}
    table = pyarrow.table(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(UserError, match="does not contain its image"):
        data.load(f"datasets:{tmp_path / 'd.parquet'}")


def test_webdatasets_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webdataset = pytest.importorskip("webdataset")
    pattern = str(tmp_path / "train-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as writer:
        for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            key = f"part/{i:03d}"
            writer.write({"__key__": key, "png": pixels, "cls": label, "json": {"index": i}})
    for form in ("train-{0000..0002}.tar", "train-*.tar"):
        loaded = data.load(f"webdataset:{tmp_path / form}", workers=2)
        assert loaded.class_names == ("0", "1", "3")
        assert loaded.labels.tolist() == [0, 2, 1, 1, 0, 2, 1]
        same_images(loaded)
    uri, keep = f"webdataset:{tmp_path / 'train-*.tar'}", tmp_path / "cache"
    disk = data.load(uri, memory_limit=0, cache=keep)
    assert isinstance(disk.images, OnDisk)
    assert disk.images[:].equal(loaded.images)  # type: ignore[arg-type]
    rows = torch.tensor([5, 0, 3])
    assert data.load(uri, rows=rows, cache=keep).images.equal(loaded.images[rows])  # type: ignore[arg-type]
    # From the cache, all of them and those three: nothing is decoded.
    monkeypatch.setattr("ptgm_fast.data.webdataset.read_image", None)
    assert data.load(uri, cache=keep).images.equal(loaded.images)  # type: ignore[arg-type]
    assert data.load(uri, rows=rows, cache=keep).images.equal(loaded.images[rows])  # type: ignore[arg-type]
    monkeypatch.undo()
    assert len(data.load(f"webdataset:{tmp_path / 'train-0002.tar'}")) == 1
    with pytest.raises(UserError, match=r"no shard .*train-0003\.tar"):
        data.load(f"webdataset:{tmp_path}/train-{{0000..0003}}.tar")


def test_our_own_shards_are_read(tmp_path: Path) -> None:
    """What `synthesize --format webdataset` writes, in its layout."""
    png = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(png, "PNG")
    write_tar(tmp_path / "a.tar", {"000.png": png.getvalue(), "000.cls": b"4", "000.json": b"{}"})
    told: list[str] = []
    loaded = data.load(f"webdataset:{tmp_path / 'a.tar'}", on_notice=told.append)
    assert (loaded.class_names, told) == (("4",), [])


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("files", "mode", "message"),
    [
        ({"0.png": b"x"}, "w", "sample '0' .*has no .cls"),
        ({"0.cls": b"1"}, "w", "sample '0' .*has no image"),
        ({"0.cls": b"dog", "0.png": b"x"}, "w", "'dog', expected a class number"),
        ({"0.cls": b"1", "0.png": b"x", "0.jpg": b"x"}, "w", "two images"),
        ({"0.cls": b"1", "0.png": b"x"}, "w", "0.png.*cannot be read"),
        ({"0.cls": b"1", "0.png": b"x"}, "w:gz", "not an uncompressed tar"),
        ({"0.pyd": b"x"}, "w", "no samples"),
    ],
)
def test_a_shard_of_another_form(
    tmp_path: Path, files: dict[str, bytes], mode: str, message: str
) -> None:
    write_tar(tmp_path / "a.tar", files, mode)
    with pytest.raises(UserError, match=message):
        data.load(f"webdataset:{tmp_path / 'a.tar'}")
