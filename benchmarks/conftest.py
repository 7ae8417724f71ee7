"""Shared by the suites: rounds in which contenders take turns, the number of threads, the device and its clock."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Makes cases, peers and networks importable by name, also in the processes that the benchmarks start.
sys.path.insert(0, str(Path(__file__).parent))

# Before torch: it sets the libraries' environment variables.
import instruction_set
import torch
from clock import DeviceClock
from registry import Case, all_cases, ready, role_of

from ptgm_fast.profiling.device import CudaTimer

# The instruction set of the CPU suites, and whether it is narrower than the processor's.
ISA = pytest.StashKey[tuple[str | None, bool]]()
PACKAGES = ("torch", "triton", "torchvision", "kornia", "scipy", "pytorch-pretrained-biggan", "semilearn")  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("suites")
    group.addoption(
        "--rounds",
        type=int,
        default=1,
        metavar="R",
        help="Run the contenders of a group in turn, R times; each round times 1/R of a suite's calls.",
    )
    group.addoption(
        "--round",
        type=int,
        metavar="I",
        help="Run only round I (from 0) of the R rounds, to give each its own process as `make bench` does.",
    )
    group.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: run the cases that support a GPU on it, timed by CUDA events.",
    )


def pytest_configure(config: pytest.Config) -> None:
    rounds, only = config.getoption("rounds"), config.getoption("round")
    if rounds < 1:
        raise pytest.UsageError("--rounds must be at least 1")
    if only is not None and not 0 <= only < rounds:
        raise pytest.UsageError(f"--round must lie between 0 and {rounds - 1}, got {only}")
    if config.getoption("device") == "cuda":
        if not torch.cuda.is_available():
            pytest.exit("--device cuda: torch sees no CUDA device here; nothing was measured", 2)
        # Full float32: the checks' tolerances need it, and the kernels compute in it.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return
    try:
        config.stash[ISA] = instruction_set.in_use()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "benchmark" not in metafunc.fixturenames:
        return
    rounds, only = metafunc.config.getoption("rounds"), metafunc.config.getoption("round")
    metafunc.parametrize("round_number", range(rounds) if only is None else [only], indirect=True)
    if "case" not in metafunc.fixturenames:
        return
    on_gpu = metafunc.config.getoption("device") == "cuda"
    rows = [
        (case, contender, threads)
        for case in all_cases(metafunc.definition.path.parent.name)
        for threads in ((1,) if on_gpu else case.threads)
        for contender in (case.on_gpu if on_gpu else case.contenders)
    ]
    names = [f"{case.name}, {contender}, {threads}" for case, contender, threads in rows]
    places = ("case", "contender", "case_threads")
    metafunc.parametrize(places, rows, ids=names, indirect=["case_threads"])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order by group, round and contender; on a GPU, keep only the cases."""
    if config.getoption("device") == "cuda":
        left_out = [item for item in items if "case" not in getattr(item, "fixturenames", ())]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
        clock = pytest.mark.benchmark(timer=DeviceClock(CudaTimer(torch.device("cuda"))))
        for item in items:
            item.add_marker(clock)
    first: dict[Any, int] = {}
    places = [first.setdefault(_group(item), i) for i, item in enumerate(items)]
    order = sorted(range(len(items)), key=lambda i: (places[i], _round(items[i])))
    items[:] = [items[i] for i in order]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _round(item: pytest.Item) -> int:
    return _parameters(item).get("round_number", 0)


def _group(item: pytest.Item) -> tuple[Any, ...]:
    """The key that a group's contenders share: the test and its other parameters."""
    others = sorted(
        (k, repr(v)) for k, v in _parameters(item).items() if k not in ("contender", "round_number")
    )
    return item.path, item.originalname, *others  # type: ignore[attr-defined]


TOO_FEW = "the suite asks for fewer calls than --rounds"
# By test, the number of calls its suite asks for, which limits the number of rounds.
_CALLS: dict[Any, int] = {}


@pytest.fixture
def round_number(request: pytest.FixtureRequest) -> int:
    """The number of this round. A suite that asks for fewer calls than there are rounds skips the rest without setup."""
    number = request.param
    case = _parameters(request.node).get("case")
    if number >= (case.calls if case else _CALLS.get(_test(request), number + 1)):
        pytest.skip(TOO_FEW)
    return number


def _test(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    return *_group(request.node), repr(_parameters(request.node).get("contender"))


@pytest.fixture
def benchmark(round_number: int, benchmark: Any, request: pytest.FixtureRequest) -> Any:
    """pytest-benchmark's fixture, except that `pedantic(rounds=n)` makes this round's share of n calls."""
    given = _parameters(request.node)
    benchmark.extra_info["role"] = role_of(given.get("contender", "ours"))
    narrower = False
    if request.config.getoption("device") == "cpu":
        benchmark.extra_info["threads"] = given.get("threads", given.get("case_threads"))
        benchmark.extra_info["isa"], narrower = request.config.stash[ISA]
    num_rounds, device = (request.config.getoption(name) for name in ("rounds", "device"))
    pedantic: Callable[..., Any] = benchmark.pedantic

    def share_of(*args: Any, rounds: int = 1, **options: Any) -> Any:
        _CALLS[_test(request)] = rounds
        share = rounds // num_rounds + (round_number < rounds % num_rounds)
        if not share:
            pytest.skip(TOO_FEW)
        if narrower:
            benchmark.group += f", {benchmark.extra_info['isa']}"
        if device == "cuda":
            options["iterations"] = DeviceClock.CALLS
        return pedantic(*args, rounds=share, **options)

    benchmark.pedantic = share_of
    return benchmark


@contextmanager
def _num_threads(num: int) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    yield num
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One and two threads, for torch and for the fused ops."""
    with _num_threads(request.param) as num:
        yield num


@pytest.fixture
def case_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads that the case asks for."""
    with _num_threads(request.param) as num:
        yield num


@pytest.fixture
def run_case(
    benchmark: Any, case_threads: int, request: pytest.FixtureRequest
) -> Callable[[Case, str], None]:
    """Check a contender of a case, then time it."""

    def run(case: Case, contender: str) -> None:
        device = torch.device(request.config.getoption("device"))
        benchmark.group = case.group(case_threads, device)
        if case.images:
            benchmark.extra_info["images"] = case.images
        call = ready(case, case_threads, device).checked(contender)
        benchmark.pedantic(call, rounds=case.calls, warmup_rounds=case.warmup)

    return run


@pytest.fixture(scope="session")
def kept_memory() -> None:
    """Keep freed memory in the process, for all contenders.

    glibc returns tensors of 32 MiB and more to the kernel immediately, so each call would fault in its output again, page by
    page: on a virtual machine this takes several times as long as the work itself, and equally long for all.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL("libc.so.6")
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    assert libc.mallopt(m_mmap_max, 0)
    assert libc.mallopt(m_trim_threshold, 2**31 - 1)
    assert libc.mallopt(m_top_pad, 256 << 20)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Add to pytest-benchmark's machine info: device, GPU and package versions."""
    device = config.getoption("device")
    machine_info["device"] = device
    machine_info["gpu"] = torch.cuda.get_device_name() if device == "cuda" else None
    machine_info["versions"] = {name: _version(name) for name in PACKAGES if _version(name)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
