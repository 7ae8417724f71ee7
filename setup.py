"""What pyproject.toml cannot say: the packages under ``kernels/`` and the optional C++ extension."""

from pathlib import Path

from setuptools import find_packages, setup

try:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
except ImportError:  # metadata-only runs outside the isolated build environment
    Pybind11Extension = None

ROOT = Path(__file__).parent


def packages() -> list[str]:
    kernels = ["ptgm_fast.kernels"] + [f"ptgm_fast.kernels.{p}" for p in find_packages("kernels")]
    return find_packages(include=["ptgm_fast", "ptgm_fast.*"]) + kernels


def extensions() -> list:
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob("*.cpp"))
    if not sources or Pybind11Extension is None:
        return []
    extension = Pybind11Extension(
        "ptgm_fast._C",
        sources,
        include_dirs=["csrc"],
        cxx_std=17,
        extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
        extra_link_args=["-fopenmp"],
    )
    ParallelCompile().install()  # a file a core
    # Without a compiler the install must still succeed; the first use and `ptgm-fast doctor` say what is missing.
    extension.optional = True
    return [extension]


setup(
    packages=packages(),
    package_dir={"ptgm_fast": "ptgm_fast", "ptgm_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": build_ext} if Pybind11Extension else {},
)
