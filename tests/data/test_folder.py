"""The walk over a folder of classes: hidden and system files, links, split trees, names that look the same."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptgm_fast import data
from ptgm_fast.data.folder import class_name
from ptgm_fast.errors import UserError


def write(file: Path, value: int = 9) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file)
    return file


def classes(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        write(root / name / "0.png", value)
    return root


def test_hidden_and_system_files_are_passed_over_and_counted_in_one_line(tmp_path: Path) -> None:
    root = classes(tmp_path / "d", "a", "b")
    write(root / "a" / "deeper" / "1.png", 7)
    junk = [
        "__MACOSX/a/._0.png",
        ".git/0.png",
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/deeper/.cache/x.png",
        "a/deeper/__MACOSX/x.png",
        "b/._0.png",
        "b/.hidden.png",
        "b/Thumbs.db",
        "b/desktop.ini",
        ".DS_Store",
    ]
    for name in junk:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\x05\x16\x07 no image")
    (root / "a" / "labels.txt").write_text("notes")
    (root / "README").write_text("notes")
    write(root / "cover.jpg")
    told: list[str] = []
    loaded = data.load(f"folder:{root}", on_notice=told.append)
    assert loaded.class_names == ("a", "b")
    assert loaded.images[:, 0, 0, 0].tolist() == [0, 7, 1]
    assert loaded.labels.tolist() == [0, 0, 1]
    (line,) = told
    assert "10 hidden or system files and folders" in line
    assert "1 files of other types" in line
    assert "1 images outside the class folders" in line


def test_a_clean_folder_says_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    data.load(f"folder:{classes(tmp_path, 'a', 'b')}", on_notice=told.append)
    assert told == []


def test_links_are_followed_and_cycles_end(tmp_path: Path) -> None:
    root = classes(tmp_path / "d", "a")
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / "x.png", 3)
    write(elsewhere / "deep" / "y.png", 4)
    (root / "b").symlink_to(elsewhere)  # a class elsewhere
    (root / "a" / "z.png").symlink_to(elsewhere / "x.png")
    (root / "a" / "up").symlink_to(root / "a")
    (elsewhere / "deep" / "loop").symlink_to(elsewhere)
    loaded = data.load(f"folder:{root}")
    assert loaded.class_names == ("a", "b")
    assert loaded.images[:, 0, 0, 0].tolist() == [0, 3, 4, 3]
    assert loaded.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("target", ["nowhere.png", "0.png"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, target: str) -> None:
    root = classes(tmp_path, "a", "b")
    if target == "nowhere.png":
        (root / "b" / "1.png").symlink_to(target)
    else:
        os.mkfifo(root / "b" / "1.png")
    with pytest.raises(UserError, match=r"b/1\.png.*not a file"):
        data.load(f"folder:{root}")


@pytest.mark.parametrize(
    ("parts", "train", "test"),
    [
        (("train", "val", "test"), "train", "test"),
        (("Training", "Testing"), "Training", "Testing"),
        (("train", "valid"), "train", "valid"),
        (("test", "train", "extra"), "train", "test"),
        (("train",), "train", None),
        (("val", "test"), "test", "val"),
    ],
)
def test_a_split_tree_is_refused_with_the_options_that_take_it(
    tmp_path: Path, parts: tuple[str, ...], train: str, test: str | None
) -> None:
    for part in parts:
        classes(tmp_path / part, "a", "b")
    with pytest.raises(UserError, match="holds splits") as raised:
        data.load(f"folder:{tmp_path}")
    message = str(raised.value)
    separate = f" and data.test_images=folder:{tmp_path}/{test}" if test else ""
    assert message.endswith(f"data.images=folder:{tmp_path}/{train}{separate}")
    assert data.load(f"folder:{tmp_path}/{train}").class_names == ("a", "b")


def test_classes_that_are_called_so_are_classes(tmp_path: Path) -> None:
    assert data.load(f"folder:{classes(tmp_path, 'test', 'train')}").class_names == (
        "test",
        "train",
    )


def test_names_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        classes(tmp_path / form, unicodedata.normalize(form, "Käse"), "Zoo", "été")
    composed, decomposed = (data.load(f"folder:{tmp_path / form}") for form in ("NFC", "NFD"))
    assert composed.class_names == decomposed.class_names == ("Käse", "Zoo", "été")
    assert composed.images.equal(decomposed.images)
    classes(tmp_path / "NFC", unicodedata.normalize("NFD", "Käse"))
    with pytest.raises(UserError, match="look the same"):
        data.load(f"folder:{tmp_path / 'NFC'}")


def test_names_that_are_no_text_become_text(tmp_path: Path) -> None:
    broken = os.fsdecode(b"caf\xe9")
    loaded = data.load(f"folder:{classes(tmp_path, broken, 'b')}")
    assert loaded.class_names == ("b", "caf\\xe9")
    assert class_name(b"caf\xe9") == "caf\\xe9"
    "".join(loaded.class_names).encode()
