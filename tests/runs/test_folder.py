"""The run folder: one writer, atomically claimed names, errors that name the place, relative paths that stay valid."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ptgm_fast.errors import UserError
from ptgm_fast.runs.folder import RunFolder, claim, free, newest

HOLD = """
import sys, time
from pathlib import Path
from ptgm_fast.runs.folder import RunFolder
with RunFolder.writing(Path(sys.argv[1])) as folder:
    folder.write_config("seed = 1\\n")
    print("in", flush=True)
    time.sleep(60)
"""


def test_one_writer_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    writer = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in\n"
        for resume in (False, True):
            with (
                pytest.raises(UserError, match="another process is writing"),
                RunFolder.writing(path, resume=resume),
            ):
                pass
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    with RunFolder.writing(path, resume=True) as folder:
        assert "seed = 1" in folder.config.read_text()
    with pytest.raises(UserError, match="not empty"), RunFolder.writing(path):
        pass


def test_what_a_kill_leaves_of_a_first_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".config.toml.tmp").touch()
    with RunFolder.writing(tmp_path) as folder:
        folder.write_config("")
    assert newest(tmp_path.parent, tmp_path.name) == tmp_path


def test_every_process_finds_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "task-seed1-2").symlink_to(tmp_path / "nowhere")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: claim(tmp_path / "runs", "task-seed1"), range(16)))
    assert len({p.name for p in found}) == 16
    assert "task-seed1-2" not in {p.name for p in found}


def test_a_name_that_nothing_was_written_to_is_free_again(tmp_path: Path) -> None:
    with pytest.raises(UserError), free(tmp_path, "task") as path:
        raise UserError("a wrong setting")
    assert not path.exists()
    with free(tmp_path, "task") as path:
        (path / "config.toml").touch()
    assert path.is_dir()


def test_the_newest_is_of_exactly_that_name(tmp_path: Path) -> None:
    names = ("task-seed1", "task-seed1-2", "task-seed10", "task-seed1-x", "task-seed1-compare")
    for age, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert newest(tmp_path, "task-seed1").name == "task-seed1-2"
    with pytest.raises(UserError, match="no run to resume"):
        newest(tmp_path, "task-seed")
    with pytest.raises(UserError, match="no run to resume"):
        newest(tmp_path / "none", "task-seed1")


@pytest.mark.parametrize("place", ["file/run", "link", "a" * 300])
def test_a_folder_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be created"), RunFolder.writing(tmp_path / place):
        pass


def test_where_relative_paths_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / 'a "place" # of \n its own'
    there.mkdir()
    monkeypatch.chdir(there)
    with RunFolder.writing(tmp_path / "run") as folder:
        folder.write_config("seed = 1\n")
    monkeypatch.chdir(tmp_path)
    assert folder.started_in() == there
    there.rmdir()
    assert folder.started_in() == tmp_path
    folder.config.write_text("seed = 1\n")
    assert folder.started_in() == tmp_path
