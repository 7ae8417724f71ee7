"""A new op adds only its folder, its C++ file and its tests; it is found, dispatched, differentiated and traced."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "kernels/gelu/reference.py": '''"""The definition of gelu in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor, scale: float) -> Tensor:
    return scale * F.gelu(x)
''',
    "kernels/gelu/__init__.py": '''"""The Gaussian error linear unit."""

import torch
from torch import Tensor

from ..op import Op

_gelu = Op(
    "gelu(Tensor x, float scale) -> Tensor",
    lambda x, scale: torch.empty_like(x),
    differentiable=("x",),
)


def gelu(x: Tensor, *, scale: float = 1.0, impl: str | None = None) -> Tensor:
    """scale * x * Phi(x)."""
    return _gelu(x, scale, impl=impl)
''',
    "kernels/gelu/cpu_impl.py": '''"""The call into csrc/gelu.cpp."""

import torch
from torch import Tensor

from ptgm_fast import _C


def gelu(x: Tensor, scale: float) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    _C.gelu(x.data_ptr(), out.data_ptr(), x.numel(), scale)
    return out
''',
    "csrc/gelu.cpp": """#include <cmath>

#include "common.h"

namespace ptgm {

static void gelu(uintptr_t from, uintptr_t to, int64_t count, double scale) {
  const auto* x = reinterpret_cast<const float*>(from);
  auto* y = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < count; ++i) y[i] = scale * 0.5 * x[i] * (1.0 + std::erf(x[i] * 0.70710678118654752));
}

PTGM_BIND(module) { module.def("gelu", &gelu); }

}  // namespace ptgm
""",
    "tests/kernels/gelu/test_gelu.py": '''"""Every implementation of gelu against the reference; its gradient; traced."""

import pytest
import torch

from ptgm_fast.kernels import dispatch
from ptgm_fast.kernels.gelu import _gelu, gelu


def test_it_is_found() -> None:
    assert "gelu" in dispatch.OPS
    found = {s.impl: s.available for s in dispatch.status() if s.op == "gelu"}
    assert found == {"reference": True, "cpu": True}
    assert dispatch.select("gelu", torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("impl", [None, "cpu", "reference"])
def test_values(impl: str | None) -> None:
    x = torch.randn(3, 7)
    torch.testing.assert_close(gelu(x, scale=2.0, impl=impl), 2 * torch.nn.functional.gelu(x))
    with pytest.raises(dispatch.ImplementationError, match="no such implementation"):
        gelu(x, impl="triton")


def test_gradient_and_tracing() -> None:
    x = torch.randn(3, 7, requires_grad=True)
    torch.library.opcheck(_gelu.op, (x, 2.0, "cpu"))
    assert torch.autograd.gradcheck(lambda t: gelu(t, impl="reference"), x.detach().double().requires_grad_())
    compiled = torch.compile(lambda t: gelu(t, scale=2.0), fullgraph=True, backend="aot_eager")
    made, plain = compiled(x), gelu(x, scale=2.0)
    torch.testing.assert_close(made, plain)
    (one,) = torch.autograd.grad(made.sum(), x)
    (other,) = torch.autograd.grad(plain.sum(), x)
    torch.testing.assert_close(one, other)
''',
}


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.suffix in (".py", ".cpp", ".h")
    }


@pytest.mark.slow
def test_a_new_op_is_its_folder_its_source_and_its_tests(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for folder in ("kernels", "csrc", "tests/kernels"):
        shutil.copytree(
            ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    (project / "ptgm_fast").mkdir()
    shutil.copy(ROOT / "ptgm_fast" / "__init__.py", project / "ptgm_fast")
    (project / "ptgm_fast" / "kernels").symlink_to("../kernels")
    before = digests(project)
    for name, text in FILES.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)

    # The other ops' sources would only take longer to compile.
    extension = project / "ptgm_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    build = [os.environ.get("CXX", "g++"), "-O0", "-std=c++17", "-shared", "-fPIC", "-w"]
    sources = [project / "csrc" / name for name in ("module.cpp", "gelu.cpp")]
    subprocess.run([*build, *include, *sources, "-o", extension], check=True)
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
         "-c", os.devnull, "--rootdir", project, project / "tests" / "kernels" / "gelu"],
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    after = digests(project)
    touched = {name for name in after if after[name] != before.get(name)}
    assert before.keys() <= after.keys()
    assert touched == set(FILES)
