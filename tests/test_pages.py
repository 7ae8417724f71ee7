"""What the pages mention exists: links and anchors, settings, code, commands, the site's pages, the workflows' steps."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ptgm_fast.cli.app import app
from ptgm_fast.config import RunConfig, load_config, load_source_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]  # fmt: skip
PAGES += sorted((ROOT / "docs").rglob("*.md"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
a_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in BLOCK.findall(page.read_text()):
        if language in languages:
            yield text


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and mkdocs make from headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain}


@a_page
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for link in re.findall(r"(?:\]\(|<img src=\")([^)\s\"]+)[)\"]", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"there is no {link}"
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading #{anchor}"


@a_page
def test_settings_are_accepted(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        path = tmp_path / "block.toml"
        path.write_text(block)
        if isinstance(tomllib.loads(block).get("data"), str):  # of `ptgm-fast source`
            load_source_config(path)
        else:
            assert load_config(path) != RunConfig()


@a_page
def test_python_parses_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ptgm_fast"):
                module = import_module(node.module or "")
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        import_module(f"{node.module}.{alias.name}")


# The changelog also names what was removed.
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "CHANGELOG"], ids=lambda p: p.stem)
def test_commands_and_their_options_exist(page: Path) -> None:
    for block in blocks(page, "console", "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            check_command(line.removeprefix("$ "))
    inline = re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))
    for line in inline:
        check_command(line)


def check_command(line: str) -> None:
    line = line.replace("-m ptgm_fast", "ptgm-fast")
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose in code marks
        return
    if "ptgm-fast" in words:
        check_cli(words[words.index("ptgm-fast") + 1 :], line)
    elif words[:1] == ["make"] and len(words) > 1:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[1] in targets, f"{line}: there is no such target"
    elif words[:1] in (["python"], ["python3"]) and len(words) > 1 and "/" in words[1]:
        assert (ROOT / words[1]).exists(), f"{line}: there is no such file"


def check_cli(words: list[str], line: str) -> None:
    group: Any = typer.main.get_command(app)
    if not words or words[0].startswith("-"):
        return
    assert words[0] in group.commands, f"{line}: there is no such command"
    known = {o for p in group.commands[words[0]].params for o in (*p.opts, *p.secondary_opts)}
    for word in words[1:]:
        if word in ("|", "&&", ";"):
            return
        option = word.split("=")[0]
        if option.startswith("--"):
            assert option in {*known, "--help"}, f"{line}: there is no such option"


def test_the_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def navigation() -> set[str]:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(below)

    return set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_every_page_is_in_the_sites_navigation() -> None:
    outside = {"index.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"}
    docs = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert navigation() == docs | outside


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "api").glob("*.md")), ids=lambda p: p.stem)
def test_the_api_pages_name_what_exists(page: Path) -> None:
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE):
        parent, _, last = name.rpartition(".")
        assert hasattr(import_module(parent), last) or import_module(name), name
    for members in re.findall(r"members: \[(.*)\]", page.read_text()):
        module = import_module("ptgm_fast.kernels")
        assert all(hasattr(module, name) for name in members.split(", "))


@pytest.mark.skipif(
    find_spec("mkdocs") is None, reason="the extra docs is not installed; `make docs` builds it"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_the_workflows_run_what_exists(workflow: Path) -> None:
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    for step in steps:
        for line in step.get("run", "").splitlines():
            check_command(line)
            first = line.split()[0]
            assert "/" not in first or (ROOT / first).exists(), f"there is no {first}"


def test_the_wheels_are_tried_by_a_script_that_exists() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    (script,) = re.findall(r"\{project\}/(\S+)", settings["test-command"])
    assert (ROOT / script).is_file()
