"""The command line from a user's view: output, exit codes, no traceback for a user's error."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptgm_fast.config import load_config

Run = Callable[..., tuple[int, str, str]]


def test_train_and_resume_of_a_finished_run(cli: Run, tiny_toml: Path, tmp_path: Path) -> None:
    code, out, err = cli("train", tiny_toml, "--out", tmp_path / "run", "--profile", "--seed", 3)
    assert (code, err) == (0, "")
    assert "test accuracy" in out
    assert "generator" in out
    assert "images/s" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seed"] == 3
    code, again, _ = cli("train", "--resume", "--out", tmp_path / "run")
    assert code == 0
    accuracy = [line for line in out.splitlines() if line.startswith("test accuracy")]
    assert accuracy == [line for line in again.splitlines() if line.startswith("test accuracy")]


def test_profile_is_written_printed_and_printed_again(
    cli: Run, tiny_toml: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = cli("train", tiny_toml, "--out", run, "--profile-ops", 2)
    assert (code, err) == (0, "")
    profile = (run / "profile.json").read_text()
    assert (run / "ops-pp.txt").is_file()
    assert (run / "ops-p-ssl-trace.json").is_file()
    for words in ("Where the time went", "images synthesized", "no overlap", "MiB of memory"):
        assert words in out
    assert "Bottleneck: " in out
    assert "perfetto" in out
    code, again, _ = cli("profile", run)
    assert code == 0
    assert again.strip() in out
    # Resuming a finished run takes no step, so the profile stays.
    code, out, _ = cli("train", "--resume", "--out", run, "--profile")
    assert code == 0
    assert "nothing was profiled" in out
    assert (run / "profile.json").read_text() == profile


def test_report_and_logger(cli: Run, tiny_toml: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    few = ("--set", "training.steps=4", "--set", "pp.steps=4", "--set", "training.validate_every=2")
    assert cli("train", tiny_toml, "--out", run, "--logger", "tensorboard", *few)[0] == 0
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    code, out, err = cli("report", run)
    assert (code, err) == (0, "")
    assert "report.html" in out
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_runs_without_out_get_folders_of_their_own(
    cli: Run, tiny_toml: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        assert cli("train", tiny_toml, "--set", "training.steps=2", "--set", "pp.steps=2")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["blobs-seed0", "blobs-seed0-2"]


def test_compare_prints_the_table_and_the_verdict(
    cli: Run, tiny_toml: Path, tmp_path: Path
) -> None:
    code, out, err = cli(
        "compare", tiny_toml, "--seeds", "4,5", "--methods", "scratch,pp", "--out", tmp_path / "c"
    )
    assert (code, err) == (0, "")
    assert "Did the pseudo data help? PP" in out
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["seeds"] == [4, 5]


def test_synthesize(cli: Run, tiny_toml: Path, tmp_path: Path) -> None:
    code, out, _ = cli(
        "synthesize", tiny_toml, "--count", 7, "--out", tmp_path / "s", "--conditioned"
    )
    assert code == 0
    assert "7 images of 3 classes" in out
    assert len(list((tmp_path / "s").rglob("*.png"))) == 7


def test_synthesize_a_pool_in_shares_and_train_from_it(
    cli: Run, tiny_toml: Path, tmp_path: Path
) -> None:
    command = ("synthesize", tiny_toml, "--format", "pool", "--count", 5000)
    code, out, err = cli(*command, "--estimate")
    assert (code, err, list(tmp_path.glob("pool*"))) == (0, "", [])
    assert "5,000 images of 8x8 as pool" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == list("1248")
    # Made separately, then merged: the records of finished parts come with the files.
    for share in (1, 2):
        code, out, _ = cli(*command, "--out", f"pool-{share}", "--shard", f"{share}/2")
        assert (code, "1 of 2 parts are still missing" in out) == (0, True)
    shutil.copytree("pool-2", "pool-1", dirs_exist_ok=True)
    assert "5,000 images of 6 classes" in cli(*command, "--out", "pool-1")[1]
    settings = ("--set", "synthesis.images=5000", "--set", "synthesis.pool=pool-1")
    code, out, err = cli("train", tiny_toml, "--out", "run", *settings)
    assert (code, err) == (0, "")
    served = "0 synthesized, 192 served from a pool of 312 KiB (1.0 times each)"
    assert served in " ".join(out.split())
    for wrong, message in (
        ((*command, "--shard", "2"), "--out DIR is required"),
        ((*command, "--out", "x", "--shard", "2"), "--shard takes I/N"),
        ((*command, "--out", "x", "--shard", "3/2"), "I from 1 to N"),
        (("compare", tiny_toml, "--share-pool"), "--share-pool has no effect"),
        (("compare", tiny_toml, "--networks", "a,a"), "lists a name twice"),
    ):
        code, _, err = cli(*wrong)
        assert (code, message in err, "Traceback" in err) == (2, True, False), err


def test_optimize_reports_passes_difference_and_rates(cli: Run) -> None:
    code, out, err = cli("optimize", "letters", "--batch", 4, "--rounds", 2)
    assert (code, err) == (0, "")
    assert re.search(r"phases +2 +17,949,312 -> 11,694,720", out)
    assert re.search(r"largest difference from the original.*\d\.\de-0[67]", out, re.S)
    assert re.search(r"[\d,.]+ -> [\d,.]+\s+images/s\s+\(\d+\.\d\dx\)", out)
    code, out, _ = cli("optimize", "letters", "--rounds", 0)
    assert (code, "images/s" in out) == (0, False)
    code, _, err = cli("optimize", "missing")
    assert (code, "Traceback" in err) == (2, False)


def test_convert_refuses_a_pickle_with_code(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "n.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    code, _, err = cli("convert", tmp_path / "n.pkl")
    assert (code, "Traceback" in err) == (2, False)
    assert "asks for os.system" in err
    assert not (tmp_path / "ran").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["n.pkl"]


def test_no_optimize_keeps_the_original(cli: Run, tiny_toml: Path, tmp_path: Path) -> None:
    for command, extra in (("train", ()), ("synthesize", ("--count", 3))):
        for flag, kept in (("--no-optimize", "false"), ("--set=source.optimize=true", "true")):
            out = tmp_path / f"{command}-{kept}"
            assert cli(command, tiny_toml, "--out", out, flag, *extra)[0] == 0
            assert f"optimize = {kept}" in (out / "config.toml").read_text()


def test_check_prints_what_fits_and_what_does_not(
    cli: Run, tiny_toml: Path, tmp_path: Path
) -> None:
    code, out, _ = cli("check", tiny_toml, "--out", tmp_path / "check", "--samples", 30)
    assert code == 0
    for words in (
        "of 30 samples of 3 classes (top 5:",
        "most uncertain training images",
        "target classes that ask for the same source classes: ",
        "distance from the source: ",
        "warning: the source classifier agrees with",
    ):
        assert words in " ".join(out.split())
    assert {p.name for p in (tmp_path / "check").iterdir()} == {"check.json", "check.png"}


def test_a_classifier_of_the_generators_samples(cli: Run, tiny_toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "classifier"
    settings = ("--set", "source.training.steps=3", "--set", "source.training.batch_size=8")
    code, said, _ = cli("source", "--classifier-only", tiny_toml, "--out", out, *settings)
    assert code == 0
    assert '"fresh_samples_recognized"' in said
    assert {p.name for p in out.iterdir()} == {"classifier.safetensors", "classifier.json"}
    code, _, error = cli(
        "source", "--classifier-only", tiny_toml, "--out", out, *settings, "--seed", 1
    )
    assert code == 2
    assert "with other source.training settings" in " ".join(error.split())


def test_doctor_names_device_implementations_and_extras(cli: Run) -> None:
    code, out, _ = cli("doctor")
    assert code == 0
    for word in (
        "ptgm-fast",
        "processor",
        "GPU",
        "reference",
        "timm",
        "torchvision",
        "mlxtend",
        "bundled source pair",
    ):
        assert word in out
    assert "broken" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "missing"], "does not exist"),
        (["init", "taken"], "has no class folders"),
        (["init", "taken", "--out", "taken/file"], "already exists"),
        (["train", "missing.toml"], "does not exist"),
        (["train", "CONFIG", "--set", "pp.stesp=3"], "did you mean 'steps'"),
        (["train", "CONFIG", "--set", "p_ssl.method=magic"], "source-head"),
        (["train", "CONFIG", "--set", "data.labels_per_class=400"], "class '0' has 30 images"),
        (["train", "CONFIG", "--set", "data.images=folder:nowhere"], "does not exist"),
        (["train", "CONFIG", "--set", "source.generator=nowhere"], "neither bundled"),
        (["train", "CONFIG", "--out", "taken"], "--resume"),
        (["train", "--resume", "--out", "nothing"], "no run to resume"),
        (["train", "CONFIG", "--resume"], "no run to resume"),
        (["compare", "CONFIG", "--methods", "scrach"], "did you mean 'scratch'"),
        (["compare", "CONFIG", "--methods", "pp,pp"], "twice"),
        (["compare", "CONFIG", "--seeds", "a"], "--seeds takes"),
        (["compare", "CONFIG", "--seeds", "0"], "at least 1"),
        (["synthesize", "CONFIG", "--count", "3", "--out", "taken"], "already exists"),
        (["source", "missing.toml"], "does not exist"),
        (["train", "CONFIG", "--logger", "wandb"], "unknown --logger 'wandb'"),
        (["profile", "taken"], "was not profiled"),
        (["report", "taken"], "holds no run"),
        (["report", "missing"], "is not a folder"),
    ],
)
def test_mistakes_end_with_one_message_and_code_2(
    cli: Run, tiny_toml: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    code, out, err = cli(*[str(tiny_toml) if a == "CONFIG" else a for a in arguments])
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert len(err.splitlines()) < 20
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_resume_with_other_settings_is_refused(cli: Run, tiny_toml: Path, tmp_path: Path) -> None:
    assert (
        cli("train", tiny_toml, "--out", "run", "--set", "training.steps=2", "--set", "pp.steps=2")[
            0
        ]
        == 0
    )
    code, _, err = cli("train", "--resume", "--out", "run", "--set", "p_ssl.weight=0.125")
    assert code == 2
    assert "weight = 0.125" in err


def test_a_full_disk_is_told_without_a_traceback(
    cli: Run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = cli("train", tiny_toml, "--out", "run")
    assert code == 2
    assert "No space left on device" in err
    assert "--resume" in err


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ptgm_fast", *map(str, arguments)]


def started(toml: Path, out: Path, *, checkpoint_every: int) -> subprocess.Popen[str]:
    """A run in a process of its own, long enough to be interrupted."""
    every = ("--set", f"pp.checkpoint_every={checkpoint_every}")
    return subprocess.Popen(
        command("train", toml, "--out", out, *LONGER, *every),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# Long enough to be interrupted. How often a checkpoint is written changes no weight.
LONGER = ("--set", "pp.steps=300")
WHOLE: list[bytes] = []


@pytest.fixture
def whole(cli: Run, tiny_toml: Path, tmp_path: Path) -> bytes:
    """The weights of the longer run, trained once."""
    if not WHOLE:
        assert cli("train", tiny_toml, "--out", tmp_path / "whole", *LONGER)[0] == 0
        WHOLE.append((tmp_path / "whole" / "model.safetensors").read_bytes())
    return WHOLE[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_resumes_to_the_same_weights(
    cli: Run, whole: bytes, tiny_toml: Path, tmp_path: Path, number: int
) -> None:
    process = started(tiny_toml, tmp_path / "parts", checkpoint_every=0)
    metrics = tmp_path / "parts" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Continue with: ptgm-fast train --resume" in output
    assert "Traceback" not in output
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    assert cli("train", "--resume", "--out", tmp_path / "parts")[0] == 0
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_a_kill_leaves_a_folder_that_resumes(
    cli: Run, whole: bytes, tiny_toml: Path, tmp_path: Path
) -> None:
    process = started(tiny_toml, tmp_path / "parts", checkpoint_every=3)
    checkpoint = tmp_path / "parts" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert cli("train", "--resume", "--out", tmp_path / "parts")[0] == 0
    assert (tmp_path / "parts" / "model.safetensors").read_bytes() == whole


def test_help_is_quick_and_lists_the_commands() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = subprocess.run(command("--help"), capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    for name in ("train", "compare", "synthesize", "source", "check", "doctor", "profile"):
        assert name in result.stdout
    # 0.18 s measured alone on two cores; the best of three, with room for a busy machine.
    assert min(seconds) < 1.0


def test_baselines_are_trained_after_the_run_and_printed_beside_it(
    tiny_toml: Path, tmp_path: Path, cli: Run
) -> None:
    run = tmp_path / "run"
    code, out, err = cli("train", tiny_toml, "--out", run, "--baselines")
    assert code == 0, err
    after = out[out.index("test accuracy") :]
    for row in ("scratch", "soft-target", "this run"):
        assert f"│ {row} " in after
    assert "points against scratch" in after
    # It ends with what to do next.
    last = [line for line in after.splitlines() if line.startswith("next: ptgm-fast ")]
    assert [line.split()[2] for line in last] == ["report", "compare", "tune"]
    assert after.splitlines()[-3:] == last
    assert (run / "baselines" / "compare.png").is_file()
    # The second time, nothing is trained.
    code, again, _ = cli("train", "--resume", "--out", run, "--baselines")
    assert code == 0
    assert "points against scratch" in again


def test_a_comparison_goes_on_from_another_directory(
    cli: Run, tiny_toml: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images' relative path is resolved from where the comparison was started; only the missing row is trained."""
    shutil.copy(blobs, tmp_path / "near.npz")
    images = ("--set", "data.images=npz:near.npz")
    code, _, _ = cli("compare", tiny_toml, *images, "--methods", "scratch,pp", "--seeds", "3,", "--out", "c")  # fmt: skip
    assert code == 0
    lines = (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "c" / "metrics.jsonl").write_text(lines[0] + "\n")
    report = (tmp_path / "c" / "compare.json").read_bytes()
    (tmp_path / "c" / "compare.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, again, err = cli("compare", "--resume", "--out", "../c")
    assert (code, err) == (0, "")
    shown = [line.split()[2] for line in again.splitlines() if line.startswith("seed 3")]
    assert shown == ["pp"]
    accuracy = [json.loads(r)["methods"]["pp"]["mean"] for r in (report, (tmp_path / "c" / "compare.json").read_bytes())]  # fmt: skip
    assert accuracy[0] == accuracy[1]
    code, _, err = cli("compare", "--resume", "--out", "../c", "--seeds", "2")
    assert code == 2
    assert "takes only --out DIR" in err


def test_a_run_goes_on_from_another_directory(
    cli: Run, tiny_toml: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(blobs, tmp_path / "near.npz")
    assert cli("train", tiny_toml, "--set", "data.images=npz:near.npz", "--out", "r")[0] == 0
    weights = (tmp_path / "r" / "model.safetensors").read_bytes()
    (tmp_path / "r" / "summary.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = cli("train", "--resume", "--out", "../r")
    assert (code, err) == (0, "")
    assert (tmp_path / "r" / "model.safetensors").read_bytes() == weights


def test_a_search_prints_what_it_chose(
    cli: Run, tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptgm_fast.runs import tune

    monkeypatch.setattr(tune, "ROUNDS", (1, 2))
    monkeypatch.setattr(tune, "LEAST_TRIALS", 2)
    code, out, err = cli("tune", tiny_toml, "--minutes", 0.01, "--out", "t")
    assert (code, err) == (0, "")
    assert "(chosen)" in out
    assert "ptgm-fast train" in out
    assert (tmp_path / "t" / "chosen.toml").is_file()
    code, again, _ = cli("tune", "--resume", "--minutes", 0.01, "--out", "t")
    assert code == 0
    assert " seed 1000  validation" not in again


def test_without_arguments_it_says_how_to_begin(cli: Run) -> None:
    code, out, err = cli()
    assert (code, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ptgm-fast", "train"],
        ["ptgm-fast", "init"],
        ["ptgm-fast", "--help"],
    ]


def test_from_own_images_to_a_config(cli: Run, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(6):
        (tmp_path / "own" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / "own" / "ab"[number % 2] / f"{number}.png")
    code, out, err = cli("init", "own", "--out", "first.toml")
    assert (code, err) == (0, "")
    assert "own: 2 classes, 6 images; 3 to 3 per class" in out
    assert [line.strip() for line in out.splitlines()[-2:]] == [
        "ptgm-fast check first.toml",
        "ptgm-fast train first.toml --baselines",
    ]
    written = (tmp_path / "first.toml").read_text()
    assert load_config("first.toml").data.images == "folder:own"
    (tmp_path / "first.toml").write_text("mine")
    code, _, err = cli("init", "own", "--out", "first.toml")
    assert (code, (tmp_path / "first.toml").read_text()) == (2, "mine")
    assert "--force" in err
    assert cli("init", "own", "--out", "first.toml", "--force")[0] == 0
    assert (tmp_path / "first.toml").read_text() == written
    # Without --out, in the working directory, under the folder's name.
    assert cli("init", "own")[0] == 0
    assert (tmp_path / "own.toml").read_text() == written
