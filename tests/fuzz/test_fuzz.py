"""Input at random: it is used, or refused with one message and exit code 2; nothing that was written is lost.

A try is a function of its number: what fails is run again by `--tries 1 --first-try NUMBER -k KIND`.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image
from pydantic import BaseModel

from on_disk import same, weights
from ptgm_fast.cli import main
from ptgm_fast.config import RunConfig, config_to_toml, load_config
from ptgm_fast.data.pixels import read_image
from ptgm_fast.errors import UserError
from ptgm_fast.runs.train import train
from ptgm_fast.training.context import Context, Interrupted

pytestmark = pytest.mark.fuzz
Tiny = Callable[..., RunConfig]


def share(value: float) -> Callable[[Any], Any]:
    """This test's part of all tries."""

    def mark(function: Any) -> Any:
        function.share = value
        return function

    return mark


FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I"),
    "ICO": ("RGBA",),
    "TGA": ("L", "RGB", "RGBA"),
    "JPEG2000": ("L", "RGB"),
}


def encoded(rng: random.Random) -> bytes:
    kind = rng.choice(list(FORMATS))
    mode, size = rng.choice(FORMATS[kind]), (rng.randint(1, 40), rng.randint(1, 40))
    image = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
    if mode not in ("I;16", "LAB"):
        image = image.convert(mode)
    elif mode == "I;16":
        image = Image.frombytes("I;16", size, rng.randbytes(2 * size[0] * size[1]))
    else:
        image = Image.frombytes("LAB", size, rng.randbytes(3 * size[0] * size[1]))
    options: dict[str, Any] = {}
    if kind in ("GIF", "TIFF", "WEBP") and rng.random() < 0.3:
        options = {"save_all": True, "append_images": [image]}
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Cut off, some bits flipped, bytes put in or taken out, or whole."""
    kind, found = rng.randrange(5), bytearray(data)
    if kind == 0:
        del found[rng.randrange(len(found) + 1) :]
    elif kind == 1:
        for _ in range(rng.choice((1, 3, 30))):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        place = rng.randrange(len(found))
        found[place:place] = rng.randbytes(rng.randint(1, 50))
    elif kind == 3:
        place = rng.randrange(len(found))
        del found[place : place + rng.randint(1, 50)]
    return bytes(found)


def outcome(function: Callable[[], Any], *accepted: type[Exception]) -> tuple[Any, Any]:
    """What it gives, or how it was refused."""
    try:
        return function(), None
    except accepted as error:
        return None, error


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata
@share(0.5)
def test_images(part: range, tmp_path: Path) -> None:
    for number in part:
        rng = random.Random(f"images {number}")
        file = tmp_path / "image"
        file.write_bytes(damaged(rng, encoded(rng)))
        image, refused = outcome(lambda file=file: read_image(file), UserError)
        if refused:
            assert str(file) in str(refused), number
            assert "\n" not in str(refused), number
            continue
        assert image.dtype == torch.uint8, number
        assert image.ndim == 4, number
        assert image.shape[1] in (1, 3), number


def fields(model: type[BaseModel], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += fields(field.annotation, (*place, name))
        found.append((*place, name))
    return found


PLACES = fields(RunConfig)
# What a limit is, below and beyond it; and what is no number at all.
VALUES: tuple[Any, ...] = (
    *(0, 1, 2, 3, 5, -1, 10**6, 2**31, 2**63, -(2**63), 10**30),
    *(0.0, -0.0, 0.5, 1.0, 1e-12, 1e-320, 1e30, -1.5, float("inf"), float("-inf"), float("nan")),
    *(True, False, "", "x", "auto", "none", "all", "fresh", "uda", "cpu", "meta", "\0", "a\nb", "é[/b]$_"),
    *([], [0.5], [0.5, 0.5], [1, 2, 3], ["x"], {}, {"x": 1}, [[14, 0.5], [28, 1.0]]),
)  # fmt: skip
# They make a run of a tiny task long or large, not wrong.
SIZES = ("steps", "batch_size", "per_class", "images", "image_size", "depth", "keep")


def setting(rng: random.Random) -> str:
    place, value = rng.choice(PLACES), rng.choice(VALUES)
    if any(size in place[-1] for size in SIZES) and isinstance(value, int) and value > 5:
        value = 4
    return f"{'.'.join(place)}={tomli_w.dumps({'v': value})[4:].strip()}"


def ends(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """The exit code of a command; anything else than an exit goes through."""
    monkeypatch.setattr(sys, "argv", ["ptgm-fast", *map(str, arguments)])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0), stopped
    return 0, None


@share(0.3)
def test_options(part: range, tiny_toml: Path, tmp_path: Path) -> None:
    """Read, written and read again as the same; what was accepted trains, or is refused before there is a folder."""
    for number in part:
        rng = random.Random(f"options {number}")
        given = [setting(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
        try:
            config = load_config(tiny_toml, given)
        except UserError:
            continue
        file = tmp_path / "again.toml"
        file.write_text(config_to_toml(config))
        assert load_config(file) == config, (number, given)
        if number % 5:
            continue
        out, began = tmp_path / f"run-{number}", time.monotonic()
        context = Context(stop=lambda since=began: time.monotonic() - since > 5)
        run = partial(train, config, out, context=context)
        _, refused = outcome(run, UserError, Interrupted, MemoryError, RuntimeError)
        if isinstance(refused, UserError):
            told = "not finite" in str(refused)
            assert told or not out.exists(), (number, given, str(refused))
        elif isinstance(refused, RuntimeError) and not isinstance(refused, Interrupted):
            assert "not enough memory" in str(refused), (number, given)


def files(folder: Path) -> dict[str, Path]:
    """One file of each class, whole and not."""
    rng = np.random.default_rng(0)
    made: dict[str, Path] = {}

    def put(name: str, data: bytes) -> Path:
        made[name] = folder / name
        made[name].write_bytes(data)
        return made[name]

    put("empty", b"")
    put("text.txt", b"hello\n")
    put("latin.toml", 'task = "é"\n'.encode("latin-1"))
    put("config.toml", b'task = "x"\n[pp]\nsteps = 2\n')
    put("list.json", b"[1, 2]")
    put("card.json", b'{"name": 3}')
    put("code.py", b"raise RuntimeError('imported')\n")
    put("pickle.pkl", pickle.dumps({"a": [1, 2]}))
    put("zip.npz", b"PK\x05\x06" + b"\0" * 18)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(buffer, "PNG")
    put("image.png", buffer.getvalue())
    for name, arrays in (
        ("noy.npz", {"x": np.zeros((4, 8, 8), np.uint8)}),
        ("objects.npz", {"x": np.array([None, 1], object), "y": np.zeros(2)}),
        ("floats.npz", {"x": rng.normal(size=(6, 8, 8)), "y": np.arange(6) % 2}),
        ("one.npz", {"x": np.zeros((1, 8, 8), np.uint8), "y": np.zeros(1, int)}),
    ):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        put(name, buffer.getvalue())
        put(f"cut-{name}", buffer.getvalue()[: len(buffer.getvalue()) // 2])
    for name, value in (("weights.pt", {"w": torch.zeros(2)}), ("tensor.pt", torch.zeros(3))):
        torch.save(value, folder / name)
        made[name] = folder / name
        put(f"cut-{name}", (folder / name).read_bytes()[:200])
    made["folder"] = folder / "folder"
    (made["folder"] / "a").mkdir(parents=True)
    made["missing"] = folder / "missing"
    made["null"] = Path(os.devnull)
    return made


KINDS = ("npz:{}", "folder:{}", "{}", "module:{}", "biggan:{}", "stylegan2:{}", "dcgan:{}", "pool:{}", "weights:{}")  # fmt: skip
WHERE = (
    "data.images",
    "data.test_images",
    "source.generator",
    "source.classifier.weights",
    "source.classifier.network",
    "target.network",
    "synthesis.pool",
    "out",
    "config",
    "report",
    "resume",
)


@pytest.mark.filterwarnings("ignore")  # NumPy's, of files that were cut
@share(0.18)
def test_files(
    part: range,
    tiny_toml: Path,
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every class of file in every place of the command line: exit code 0 or 2."""
    made = files(tmp_path)
    made |= {"pair": pair, "weights": pair / "classifier.safetensors"}
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.chdir(tmp_path)
    quick = ["--set", "pp.steps=1", "--set", "training.steps=1"]
    for number in part:
        rng = random.Random(f"files {number}")
        file, where = made[rng.choice(list(made))], rng.choice(WHERE)
        if where == "report":
            arguments: list[object] = ["report", file, "--out", tmp_path / f"page-{number}.html"]
        elif where == "config":
            arguments = ["train", file, "--out", f"run-{number}", *quick]
            arguments += ["--set", f"source.generator={pair}", "--set", f"data.images=npz:{made['one.npz']}"]  # fmt: skip
        elif where == "resume":
            arguments = ["train", "--resume", "--out", file]
        elif where == "out":
            arguments = ["train", tiny_toml, "--out", file, *quick]
        else:
            value = rng.choice(KINDS).format(file)
            arguments = ["train", tiny_toml, "--out", f"run-{number}", *quick, "--set", f"{where}={value}"]  # fmt: skip
            if where.startswith("source.classifier"):
                arguments += ["--set", "source.classifier.network=ptgm:cnn-small"]
            if where == "synthesis.pool":
                arguments += ["--set", "synthesis.images=64"]
        code, _ = ends(arguments, monkeypatch)
        printed = capsys.readouterr()
        assert code in (0, 2), (number, arguments, printed.err)
        assert code == 0 or printed.err.startswith("ptgm-fast: "), (number, arguments)
    for path, data in before.items():
        assert path.read_bytes() == data, path


@pytest.mark.slow
@share(0.02)
def test_kills(part: range, tiny_toml: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Killed at any moment, a run goes on to the same weights, or had not begun; so do images and comparisons."""
    more = ["--set", "pp.steps=30", "--set", "pp.checkpoint_every=3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    began = time.monotonic()
    subprocess.run(command("train", tiny_toml, *more, "--out", whole), env=environment, check=True)
    seconds = time.monotonic() - began
    for number in part:
        rng = random.Random(f"kills {number}")
        out = tmp_path / f"run-{number}"
        new = {
            "train": ("train", tiny_toml, *more, "--out", out),
            "synthesize": ("synthesize", tiny_toml, "--count", 3000, "--format", "pool", "--out", out),
            "compare": ("compare", tiny_toml, "--methods", "scratch,pp", "--seeds", 2, "--out", out),
        }  # fmt: skip
        kind = rng.choice(["train", "train", "synthesize", "compare"])
        for _ in range(rng.choice((1, 1, 2))):
            begun = (out / "config.toml").is_file() and kind != "synthesize"
            asked = command(*((kind, "--resume", "--out", out) if begun else new[kind]))
            process = subprocess.Popen(asked, env=environment, stdout=subprocess.DEVNULL)
            try:
                process.wait(rng.uniform(0.2, 1.2) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            assert process.wait() in (0, -signal.SIGKILL), number
        begun = (out / "config.toml").is_file() and kind != "synthesize"
        asked = command(*((kind, "--resume", "--out", out) if begun else new[kind]))
        done = subprocess.run(asked, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (number, kind, done.stderr)
        if kind == "train":
            assert same(weights(out), weights(whole)), number


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ptgm_fast", *map(str, arguments)]
