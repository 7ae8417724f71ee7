"""Printing never ends a run: readers that go away, closed and full streams, other encodings, names that are not valid text."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ptgm_fast.cli.streams import LenientStream
from ptgm_fast.cli.ui import console

NAMES = ["[bold]a[/]", "v[/2]", ":smile:", "a:b:", "{0}", "%s", "$x_$", "Käse"]


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        console.print(name, soft_wrap=True)
    assert capsys.readouterr().out.splitlines() == NAMES


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("ascii", "K\\xe4se \\u2502 caf\\udce9"), ("utf-8", "Käse │ caf\\udce9")],
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, printed: str) -> None:
    raw = io.BytesIO()
    stream = LenientStream(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("Käse │ " + os.fsdecode(b"caf\xe9"))
    stream.flush()
    assert raw.getvalue().decode(encoding) == printed


def test_a_closed_stream_takes_everything() -> None:
    closed = io.StringIO()
    closed.close()
    stream = LenientStream(closed)
    stream.write("a")
    stream.flush()
    stream.write("b")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m ptgm_fast"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('CLI', command)}"],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "line",
    [
        "CLI doctor | head -1",
        "CLI --help > /dev/full",
        "CLI --help >&-",
        "CLI --help >&- 2>&-",
        "PYTHONIOENCODING=ascii CLI doctor",
        "PYTHONUNBUFFERED=1 CLI --help | true",
    ],
)
def test_the_exit_code_is_as_if_it_had_been_printed(line: str) -> None:
    result = shell(line)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_mistake_keeps_its_exit_code() -> None:
    result = shell("CLI train missing.toml 2>&- | true")
    assert result.returncode == 2
