"""The layers of the package: imports only go down."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Top floor first; packages on the same floor do not import each other.
FLOORS = [
    {"cli"},
    {"runs"},
    {"config"},
    {"profiling"},
    {"training"},
    {"engine"},
    {"sampling"},
    {"generators"},
    {"models", "data"},
    {"kernels", "records"},
    {"errors", "query", "spans"},
]
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}


def room_of(file: Path) -> str:
    relative = file.relative_to(ROOT)
    if relative.parts[0] == "kernels":
        return "kernels"
    return relative.parts[1].removesuffix(".py")


def python_files() -> list[Path]:
    return sorted([*(ROOT / "ptgm_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])


def imported_rooms(source: str, module: str, is_package: bool = False) -> set[str]:
    """The rooms of ptgm_fast that a module's source imports, anywhere in it; `module` is its full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[
                    : None if is_package and node.level == 1 else -node.level + is_package
                ]
                base = ".".join([*parents, base] if base else parents)
            names = (
                [f"{base}.{alias.name}" for alias in node.names] if base == "ptgm_fast" else [base]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("ptgm_fast.")}
    return found & set(LEVEL)


def module_name(file: Path) -> str:
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "ptgm_fast")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("file", python_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_only_go_down(file: Path) -> None:
    room = room_of(file)
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"{file} is in a room without a floor; add {room!r} to FLOORS"
    imported = imported_rooms(file.read_text(), module_name(file), file.name == "__init__.py") - {
        room
    }
    upward = {name for name in imported if LEVEL[name] <= LEVEL[room]}
    assert not upward, f"{room} must not import {sorted(upward)}"


def test_the_rule_catches_an_upward_import() -> None:
    assert imported_rooms("from ptgm_fast import config, kernels", "ptgm_fast.data.x") == {
        "config",
        "kernels",
    }
    assert imported_rooms("def f():\n    import ptgm_fast.cli.app", "ptgm_fast.data.x") == {"cli"}
    assert imported_rooms("from ..config import run", "ptgm_fast.data.x") == {"config"}
    assert imported_rooms("from ..training import pp", "ptgm_fast.kernels", is_package=True) == {
        "training"
    }
    assert imported_rooms(
        "from . import reference", "ptgm_fast.kernels.views", is_package=True
    ) == {"kernels"}


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """Our modules that a file imports anywhere, except for typing only."""
    is_package, module = file.name == "__init__.py", module_name(file)
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(file.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & modules or {base}
    return (found & modules) - {module}


def import_graph() -> dict[str, set[str]]:
    files = {module_name(file): file for file in python_files()}
    return {name: imports_of(file, set(files)) for name, file in files.items()}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph()
    assert "ptgm_fast.training.stage" in graph["ptgm_fast.training.loop"]
    graphlib.TopologicalSorter(graph).prepare()
    graph["ptgm_fast.training.stage"].add("ptgm_fast.training.loop")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_importing_is_cold() -> None:
    """Importing `ptgm_fast` and its command line loads no torch, no Triton and no compiled extension."""
    code = (
        "import sys, ptgm_fast, ptgm_fast.cli.app; "
        "print([m for m in ('torch', 'triton', 'numpy', 'pydantic', 'rich', 'ptgm_fast._C') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_kernels_refuse_to_be_imported_by_their_folder_name() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "ptgm_fast.kernels" in result.stderr
