"""Decoding by several threads, the cache of decoded images, and sets that stay on disk: the same bytes in every way."""

import os
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from ptgm_fast import data
from ptgm_fast.data import OnDisk, in_batches
from ptgm_fast.data.images import ImageSet, prepare
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError
from ptgm_fast.sampling.recipe import digest_of


def photographs(root: Path, count: int = 40, classes: str = "ab") -> Path:
    """JPEGs of several sizes, turned by EXIF, grey and colour."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count // len(classes)):
            shape = (30 + i, 25 + 2 * i) if i % 5 == 0 else (30 + i, 25 + 2 * i, 3)
            exif = Image.Exif()
            exif[0x0112] = 1 + i % 8
            image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            image.save(root / name / f"{i:03d}.jpg", exif=exif)
    return root


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jpg"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photographs")


def test_the_bytes_are_those_of_one_file_after_the_other(root: Path) -> None:
    expected = torch.cat([prepare(read_image(f), 3, 20) for f in files_of(root)])
    threads = torch.get_num_threads()
    for workers in (1, 2, 5):
        loaded = data.load(f"folder:{root}", channels=3, image_size=20, workers=workers)
        assert loaded.images.equal(expected)
        assert loaded.labels.tolist() == [0] * 20 + [1] * 20
    assert torch.get_num_threads() == threads
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    # What the workers set for themselves is not what later threads begin with.
    assert seen == [threads]


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.jpg", exif=exif)
    (image, _) = data.load(f"folder:{tmp_path}").images
    assert image.shape == (1, 16, 8)
    assert image[0, :8].min() > 200
    assert image[0, 8:].max() < 50


def test_the_first_fault_is_told_and_how_far_it_is(root: Path) -> None:
    told: list[tuple[int, int]] = []
    data.load(
        f"folder:{root}", channels=3, image_size=9, on_images=lambda *at: told.append(at), workers=2
    )
    assert told == [(16, 40), (32, 40), (40, 40)]
    files = files_of(root)
    for number in (33, 7, 20):
        files[number].write_bytes(b"no image")
    with pytest.raises(UserError, match=rf"{files[7].name}.*cannot be read"):
        data.load(f"folder:{root}", channels=3, image_size=9, workers=2)
    # An earlier image of another shape comes first, though it is decoded.
    with pytest.raises(UserError, match=rf"{files[1].name}.*data\.image_size"):
        data.load(f"folder:{root}", workers=2)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are decoded from now on."""
    decoded: list[Path] = []

    def read(file: Path, *arguments: object) -> torch.Tensor:
        decoded.append(file)
        return read_image(file, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ptgm_fast.data.folder.read_image", read)
    return decoded


def test_a_cache_decodes_once_and_again_after_any_change(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, cache = counted(monkeypatch), tmp_path / "cache"

    def load(**form: int) -> ImageSet:
        decoded.clear()
        return data.load(
            f"folder:{root}", cache=cache, **({"channels": 3, "image_size": 12} | form)
        )

    first = load()
    assert len(decoded) == 40
    again = load()
    assert decoded == []
    assert again.images.equal(first.images)
    assert again.labels.equal(first.labels)
    load(image_size=13)
    assert len(decoded) == 40
    load()
    assert decoded == []

    def changed() -> None:
        """The next load decodes everything, as without a cache; the one after it nothing."""
        plain = data.load(f"folder:{root}", channels=3, image_size=12)
        now = load()
        assert len(decoded) == len(now)
        assert now.images.equal(plain.images)
        assert load().images.equal(plain.images)
        assert decoded == []

    files = files_of(root)
    # The same size and time of change: only the inode's time tells.
    status, other = files[3].stat(), bytearray(files[3].read_bytes())
    other[-30] ^= 1
    files[3].write_bytes(other)
    os.utime(files[3], ns=(status.st_atime_ns, status.st_mtime_ns))
    changed()
    files[0].rename(files[0].with_name("zzz.jpg"))
    changed()
    files[1].unlink()
    changed()
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(root / "b" / "new.jpg")
    changed()
    # Two forms, the newest of each.
    assert len(list(cache.glob("*.npy"))) == len(list(cache.glob("*.json"))) == 2
    for file in cache.glob("*.npy"):
        assert np.load(file).dtype == np.uint8


def test_a_damaged_or_interrupted_cache_is_made_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    load = lambda: data.load(f"folder:{root}", channels=1, image_size=12, cache=cache)  # noqa: E731
    expected = load().images
    (file,) = cache.glob("*.npy")
    file.write_bytes(file.read_bytes()[:-5])
    assert load().images.equal(expected)
    file.unlink()
    damaged = files_of(root)[30]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        load()
    assert not list(cache.glob("*.npy"))
    assert not list(cache.glob(".writing*"))
    damaged.write_bytes(whole)
    # As a kill would leave it.
    (cache / ".writing-1").write_bytes(b"half")
    assert load().images.equal(expected)
    assert not list(cache.glob(".writing*"))


def test_animations_are_told_from_the_cache_too(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 6), v, np.uint8)) for v in (10, 20)]
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        frames[0].save(tmp_path / "d" / name / "0.gif", save_all=True, append_images=frames[1:])
    told: list[str] = []
    for _ in range(2):
        data.load(f"folder:{tmp_path / 'd'}", cache=tmp_path / "c", on_notice=told.append)
    assert len(told) == 2
    assert told[0] == told[1]
    assert "2 animations" in told[0]


@pytest.mark.parametrize("cached", [False, True])
def test_a_large_set_stays_on_disk_and_is_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    memory = data.load(f"folder:{root}", channels=3, image_size=12)
    limit = 20 * 3 * 12 * 12 / 2**30
    told: list[str] = []
    for _ in range(2):
        disk = data.load(
            f"folder:{root}",
            channels=3,
            image_size=12,
            memory_limit=limit,
            cache=tmp_path / "cache" if cached else None,
            on_notice=told.append,
        )
        assert isinstance(disk.images, OnDisk)
        assert disk.form == memory.form
        index = torch.tensor([39, 0, 7, 7])
        assert disk.images[index].equal(memory.images[index])
        assert disk.images[:2].equal(memory.images[:2])
        assert torch.cat(list(disk.images.split(7))).equal(memory.images)
        assert torch.cat(list(in_batches(disk.images))).equal(memory.images)
        assert digest_of(disk.images) == digest_of(memory.images)
        few, many = torch.arange(39, 19, -1), torch.arange(39, 18, -1)
        assert disk.subset(few).images.equal(memory.images[few])  # type: ignore[arg-type]
        part = disk.subset(many)
        assert isinstance(part.images, OnDisk)
        assert part.images.to("cpu")[:].equal(memory.images[many])
        assert part.labels.equal(memory.labels[many])
    assert ("exceed data.memory_limit" in "".join(told)) == (not cached)
    # The file without a name leaves nothing.
    assert set(tmp_path.iterdir()) - before == ({tmp_path / "cache"} if cached else set())


@pytest.mark.skipif(not psutil.LINUX, reason="shared memory of a process is Linux's figure")
def test_reading_from_the_disk_takes_no_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(8):
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((1024, 1024), Image.Resampling.NEAREST).save(tmp_path / name / f"{i}.png")
    disk = data.load(f"folder:{tmp_path}", memory_limit=0.01, on_notice=lambda m: None, workers=1)
    assert isinstance(disk.images, OnDisk)
    assert disk.images.nbytes == 48 * 2**20
    # Pages of files that are mapped count as shared.
    process = psutil.Process()
    before = process.memory_info().shared
    total = sum(int(part.sum()) for part in disk.images.split(4))
    assert total > 0
    assert process.memory_info().shared - before < 8 * 2**20


def test_a_full_disk_is_said(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("ptgm_fast.data.decoding.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"not enough space.*data\.cache"):
        data.load(f"folder:{root}", channels=3, image_size=12, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache.*cannot be created"):
        data.load(f"folder:{root}", cache=tmp_path / "file")
