"""Suites as `make bench` runs them: contenders in turn, calls shared over rounds, results, tables and plots of one file."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import result_plots
import result_tables
import torch
import write_results
from PIL import Image
from result_file import Benchmarks, read_benchmarks

from ptgm_fast.errors import UserError
from ptgm_fast.kernels.dispatch import extension_missing

ROOT = Path(__file__).resolve().parents[2]
# A suite as anyone writes it: it knows nothing of rounds. Every call, timed or not, leaves a line.
SUITE = """
import pytest

def log(*what):
    with open("log.txt", "a") as file:
        print(*what, file=file)

@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("size", [8, 16])
def test_pair(benchmark, threads, size, contender):
    benchmark.group = f"pair of {size}, {threads} threads"
    benchmark.extra_info["rate"] = 3 if contender == "ours" else "slow"
    log("set up", size, threads, contender)
    benchmark.pedantic(lambda: log("call"), rounds=7, warmup_rounds=1)

@pytest.mark.parametrize("contender", ["ours", "eager"])
def test_whole_training(benchmark, contender):
    benchmark.group = "training"
    log("set up training", contender)
    benchmark.pedantic(lambda: log("call"), rounds=1)

@pytest.mark.parametrize("ratio", [0.5])
def test_bound(benchmark, ratio):
    benchmark.group = "a bound"
    benchmark.pedantic(lambda: None, rounds=3)
    benchmark.extra_info["of the bound"] = 1.01
"""


def run_suite(folder: Path, *arguments: str, suite: str = SUITE) -> subprocess.CompletedProcess:
    """pytest on a suite of its own in `folder`/suite, with the conftest of the benchmarks."""
    (folder / "suite").mkdir()
    (folder / "suite" / "test_own.py").write_text(suite)
    (folder / "suite" / "conftest.py").symlink_to(ROOT / "benchmarks" / "conftest.py")
    command = [sys.executable, "-m", "pytest", "suite", "--benchmark-enable", "--benchmark-json=raw.json",
               "-p", "no:cacheprovider", "--import-mode=importlib", "-ra", *arguments]  # fmt: skip
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    # A worker of pytest-xdist hands its name down, and pytest-benchmark times nothing in such a worker.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    done = run_suite(folder, "--rounds", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the suite asks for fewer calls" in done.stdout
    assert "not used at all" not in done.stdout
    return folder


@pytest.fixture(scope="module")
def results(measured: Path) -> Benchmarks:
    return write_results.condensed([write_results.read_raw(measured / "raw.json")])


def test_contenders_take_turns_and_rounds_share_the_calls(measured: Path) -> None:
    lines = (measured / "log.txt").read_text().splitlines()
    order = [line for line in lines if line != "call"]
    pairs = [
        f"set up {size} {threads} {contender}"
        for size, threads in ((8, 1), (8, 2), (16, 1), (16, 2))
        for _ in range(3)
        for contender in ("ours", "eager")
    ]
    assert sorted(order[:24]) == sorted(pairs)
    for i in range(0, 24, 6):
        # One group: three rounds of both.
        assert order[i : i + 6] == order[i : i + 2] * 3
        assert [line.split()[-1] for line in order[i : i + 2]] == ["ours", "eager"]
    # What is called once is set up once.
    assert order[24:] == ["set up training ours", "set up training eager"]
    # Seven calls in three rounds are 3, 2 and 2, each with its one to warm up.
    calls = "\n".join(lines).split("set up")[1:7]
    assert [text.count("call") for text in calls] == [4, 4, 3, 3, 3, 3]


def test_results_keep_rounds_roles_and_facts(results: Benchmarks) -> None:
    cases = {case.name: case for case in results.cases}
    assert list(cases) == ["a bound, 0.5", "pair of 8, 1 threads", "pair of 8, 2 threads", "pair of 16, 1 threads", "pair of 16, 2 threads", "training"]  # fmt: skip
    pair = cases["pair of 16, 2 threads"]
    assert (pair.suite, pair.threads, pair.images) == ("suite", 2, None)
    ours, eager = pair.contenders
    assert (ours.role, eager.role) == ("own", "peer")
    assert (len(ours.seconds), ours.calls) == (3, 7)
    assert ours.quartiles[0] <= ours.median <= ours.quartiles[1] * 10
    assert (ours.facts, eager.facts) == ({"rate": 3.0}, {"rate": "slow"})
    assert [len(c.seconds) for c in cases["training"].contenders] == [1, 1]
    (bound,) = cases["a bound, 0.5"].contenders
    assert (bound.role, len(bound.seconds), bound.facts) == ("own", 3, {"of the bound": 1.01})
    assert results.device == "cpu"
    assert results.versions["torch"]
    assert os.uname().nodename not in results.model_dump_json()


def test_medians_are_those_of_each_round(measured: Path, results: Benchmarks) -> None:
    raw = json.loads((measured / "raw.json").read_text())
    (case,) = (case for case in results.cases if case.name == "pair of 8, 1 threads")
    for contender in case.contenders:
        found = {
            entry["params"]["round_number"]: entry["stats"]["median"]
            for entry in raw["benchmarks"]
            if entry["group"] == case.name and entry["params"]["contender"] == contender.name
        }
        assert contender.seconds == pytest.approx([found[i] for i in range(3)], rel=1e-4)


def test_a_contender_that_failed_in_a_round_is_left_out(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads((measured / "raw.json").read_text())

    def without(contender: str) -> Any:
        gone = {"group": "pair of 8, 1 threads", "contender": contender, "round_number": 1}
        kept = [
            e for e in raw["benchmarks"] if {**e["params"], "group": e["group"]}.items() & gone.items() != gone.items()
        ]  # fmt: skip
        assert len(kept) == len(raw["benchmarks"]) - 1
        return write_results.condensed([{**raw, "benchmarks": kept}])

    (case,) = (case for case in without("eager").cases if case.name == "pair of 8, 1 threads")
    assert [contender.name for contender in case.contenders] == ["ours"]
    assert "eager is left out" in capsys.readouterr().err
    assert "pair of 8, 1 threads" not in {case.name for case in without("ours").cases}
    assert "none of ours" in capsys.readouterr().err


def test_suites_that_ran_one_by_one_become_one_file(measured: Path) -> None:
    raw = json.loads((measured / "raw.json").read_text())
    halves = [
        {**raw, "benchmarks": [e for e in raw["benchmarks"] if (e["group"] == "training") == which]}
        for which in (False, True)
    ]
    assert write_results.condensed(halves) == write_results.condensed([raw])
    other = {**halves[1], "machine_info": {**raw["machine_info"], "versions": {"torch": "1.0"}}}
    with pytest.raises(UserError, match="several machines, devices or versions"):
        write_results.condensed([halves[0], other])


def test_rounds_in_processes_of_their_own_become_one_file(tmp_path: Path) -> None:
    raws = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        done = run_suite(folder, "--rounds", "2", "--round", str(number))
        assert done.returncode == 0, done.stdout + done.stderr
        # What is called once is measured in the first round.
        assert ("the suite asks for fewer calls" in done.stdout) == (number > 0)
        raws.append(write_results.read_raw(folder / "raw.json"))
    cases = {case.name: case for case in write_results.condensed(raws).cases}
    assert len(cases) == 6
    for contender in cases["pair of 8, 1 threads"].contenders:
        assert (len(contender.seconds), contender.calls) == (2, 7)
    assert [len(c.seconds) for c in cases["training"].contenders] == [1, 1]
    swapped = write_results.condensed(raws[::-1])
    assert {case.name: case for case in swapped.cases} == cases


@pytest.mark.parametrize("asked", ["avx2", "sse9"])
def test_a_narrower_instruction_set_is_a_case_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    if reason := extension_missing():
        pytest.skip(reason)
    from ptgm_fast import _C

    if _C.isa() != "avx512":
        pytest.skip(f"the widest instruction set here is {_C.isa()}")
    monkeypatch.setenv("PTGM_FAST_ISA", asked)
    suite = """
import os, torch
from ptgm_fast import _C

def test_what_is_used(benchmark):
    benchmark.group = "a case"
    assert _C.isa() == torch.backends.cpu.get_cpu_capability().lower() == "avx2"
    benchmark.pedantic(lambda: None)
"""
    done = run_suite(tmp_path, suite=suite)
    if asked == "sse9":
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert "PTGM_FAST_ISA = 'sse9'; accepted: avx2" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    (case,) = write_results.condensed([write_results.read_raw(tmp_path / "raw.json")]).cases
    assert (case.name, case.isa, case.lowered) == ("a case, avx2", "avx2", True)


@pytest.mark.parametrize("number", [3, -1])
def test_a_round_that_is_none_is_refused(number: int) -> None:
    options = {"rounds": 3, "round": number, "device": "cpu"}
    configure = runpy.run_path(str(ROOT / "benchmarks" / "conftest.py"))["pytest_configure"]
    with pytest.raises(pytest.UsageError, match=f"between 0 and 2, got {number}"):
        configure(SimpleNamespace(getoption=options.get))


def whole_trainings(**seconds: float) -> Benchmarks:
    """Results of whole trainings by contender, `_` for a space and `__` for a comma."""
    contenders = [
        {
            "name": name.replace("__", ", ").replace("_", " "),
            "role": "own" if name == "ours" else "peer",
            "seconds": [value],
            "quartiles": [value, value],
            "calls": 1,
            "facts": {"test accuracy": 0.95},
        }
        for name, value in seconds.items()
    ]
    case = {"name": "a whole training, 2 threads", "suite": "end_to_end", "threads": 2, "contenders": contenders}  # fmt: skip
    return Benchmarks.model_validate(
        {"date": "2026-01-01", "device": "cpu", "machine": {"processor": "A processor", "cores": 2}, "versions": {}, "cases": [case]}
    )  # fmt: skip


def test_the_gains_of_recipe_and_engine_are_numbers_of_their_own() -> None:
    seconds = {"eager__old_recipe": 100.0, "eager": 40.0, "ours": 20.0}
    table = result_tables.recipes(whole_trainings(**seconds), "results.json")
    *lines, _, where = table.splitlines()[2:]
    old, new, ours = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert where.startswith("2026-01-01, 2 cores of A processor")
    assert "`results.json`" in where
    # Channels-last failed: nothing is made of it.
    assert old[1:] == ["100 s; failed", "95.00 %; failed", "", ""]
    assert new[1:] == ["40.0 s; failed", "95.00 %; failed", "2.5x; - (the recipe)", "2.5x; -"]
    assert ours[1:] == ["20.0 s", "95.00 %", "2.0x; - (the engine)", "5.0x; -"]
    assert "make recipes" in result_tables.recipes(
        whole_trainings(ours=1.0).model_copy(update={"cases": ()}), "results.json"
    )


def test_a_bar_is_as_long_as_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"eager channels-last, old recipe": 100.0, "eager channels-last": 40.0, "ours": 20.0}
    drawn: list[Any] = []
    monkeypatch.setattr(result_plots, "save", lambda figure, path: drawn.append(figure))
    result_plots.whole_trainings(whole_trainings(**seconds), tmp_path / "bars.png")
    (axis,) = drawn[0].axes
    assert [bar.get_width() for bar in axis.patches] == list(seconds.values())
    texts = [text.get_text() for text in axis.texts]
    labels = [label for label, _, _ in result_tables.RECIPES]
    assert texts == [
        f"{label}: {value:.0f} s, 95.0 % accurate"
        for label, value in zip(labels, seconds.values(), strict=True)
    ]


def test_whole_trainings_measured_alone_are_kept_apart(tmp_path: Path) -> None:
    """Their table is the newest of either folder; the other tables are of the main one."""
    main = tmp_path / "benchmarks" / "results"
    alone = main / write_results.WHOLE_TRAININGS
    ours = whole_trainings(ours=20.0)
    older = write_results.keep(ours, main)
    assert write_results.newest("cpu", main, alone) == [older]
    newer = write_results.keep(ours, alone)
    assert write_results.newest("cpu", main, alone) == [newer]
    assert write_results.newest("cpu", main) == [older]
    newest = write_results.keep(ours.model_copy(update={"date": "2026-01-02"}), main)
    assert write_results.newest("cpu", main, alone) == [newest]
    assert write_results.newest("cuda", main, alone) == []
    # A run of the suites without whole trainings does not hide them.
    whole = "a whole training, 2 threads"
    case = ours.cases[0].model_copy(update={"name": "another"})
    others = ours.model_copy(update={"date": "2026-01-03", "cases": (case,)})
    last = write_results.keep(others, main)
    assert write_results.newest("cpu", main, alone) == [last]
    assert write_results.newest("cpu", main, alone, case=whole) == [newest]


def test_each_instruction_set_has_its_newest_results(tmp_path: Path) -> None:
    def kept(isa: str, day: int) -> Path:
        results = whole_trainings(ours=20.0)
        machine = results.machine.model_copy(update={"isa": isa})
        return write_results.keep(
            results.model_copy(update={"date": f"2026-01-0{day}", "machine": machine}), tmp_path
        )

    kept("avx2", 1)
    wide, narrow = kept("avx512", 2), kept("avx2", 3)
    assert narrow.name == "2026-01-03-a-processor-2-cores-avx2.json"
    assert write_results.newest("cpu", tmp_path) == [wide, narrow]


def test_the_short_table_has_a_column_of_each_instruction_set() -> None:
    cases = {
        "wide": whole_trainings(ours=20.0, eager=40.0),
        "narrow": whole_trainings(ours=50.0, eager=60.0),
    }
    sources = {
        path: results.model_copy(
            update={
                "machine": results.machine.model_copy(update={"isa": isa}),
                "versions": {"torch": "2.0"},
            }
        )
        for (path, results), isa in zip(cases.items(), ("avx512", "avx2"), strict=True)
    }
    table = result_tables.short(sources)
    assert (
        "| a whole training | 20.0 s | 2.0x (eager PyTorch) | 50.0 s | 1.2x (eager PyTorch) |"
        in table
    )
    assert "| what | AVX-512: ours | " in table
    assert "AVX2: 2026-01-01, 2 cores of A processor, torch 2.0 ([narrow](narrow))." in table


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"benchmarks": []}'])
def test_what_no_suite_wrote_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "raw.json").write_text(text)
    with pytest.raises(UserError, match=r"raw\.json.*(suites)"):
        write_results.read_raw(tmp_path / "raw.json")


def test_pages_and_plots_come_from_the_newest_file_alone(
    tmp_path: Path, results: Benchmarks
) -> None:
    named = results.model_copy(
        update={
            "cases": tuple(
                case.model_copy(update={"name": name, "suite": "generators", "images": images})
                for case, name, images in zip(
                    (c for c in results.cases if c.name.startswith("pair")),
                    (
                        "letters, batch 8, 2 threads",
                        "letters, batch 32, 2 threads",
                        "letters, batch 128, 2 threads",
                        "uda 256x1000, 100% count, 2 threads",
                    ),
                    (8, 32, 128, None),
                    strict=True,
                )
            )
        }
    )
    (tmp_path / "docs").mkdir()
    folder = tmp_path / "benchmarks" / "results"
    first = write_results.keep(named.model_copy(update={"date": "2026-01-30"}), folder)
    machine = write_results.slug(named.machine)
    assert first.name == f"2026-01-30-{machine}.json"
    ending = f"-{named.machine.cores}-cores-{named.machine.isa or ''}"
    assert machine.endswith(ending.rstrip("-"))
    for torch_version in ("1.0", "2.0"):
        update = {"date": "2026-01-31", "versions": {"torch": torch_version}}
        last = write_results.keep(named.model_copy(update=update), folder)
        assert last.name == f"2026-01-31-{machine}.json"
    # A second run of the day stands for it; the first can still be compared with.
    assert read_benchmarks(last).versions == {"torch": "2.0"}
    assert read_benchmarks(last.with_suffix(".before")).versions == {"torch": "1.0"}
    assert read_benchmarks(first).cases == named.cases
    full, short = tmp_path / "benchmarks" / "README.md", tmp_path / "README.md"
    marks = "<!-- {0}: begin -->\nold\n<!-- {0}: end -->\n"
    names = ("measured", "recipes", "gpu measured")
    full.write_text("a\n" + "b\n".join(map(marks.format, names)) + "c\n")
    short.write_text("a\n" + marks.format("benchmarks") + "c\n")
    write_results.write_pages(tmp_path)
    text = full.read_text()
    assert last.name in text
    assert "| letters, batch 128, 2 threads | " in text
    assert "old" not in text + short.read_text()
    assert result_tables.NO_GPU in text
    assert "| the bundled letters generator, 128 images | " in short.read_text()
    for name in ("benchmark-ratios.png", "benchmark-scaling.png"):
        with Image.open(tmp_path / "docs" / name) as picture:
            assert min(picture.size) > 150
            # Opaque and light: readable on a dark page too.
            assert picture.convert("RGBA").getpixel((1, 1)) == (255, 255, 255, 255)
    # A GPU's figures appear once there are some, and only on the full page.
    on_gpu = {"date": "2026-02-01", "device": "cuda", "machine": {"processor": "A processor", "cores": 8, "gpu": "A GPU 80GB"}}  # fmt: skip
    gpu = write_results.keep(Benchmarks.model_validate({**named.model_dump(), **on_gpu}), folder)
    assert gpu.name == "2026-02-01-a-gpu-80gb.json"
    before = short.read_text()
    write_results.write_pages(tmp_path)
    assert "A GPU 80GB" in full.read_text()
    assert result_tables.NO_GPU not in full.read_text()
    assert short.read_text() == before


def test_the_pages_are_those_of_the_newest_results(tmp_path: Path) -> None:
    """Nobody edited a measured table by hand: speeds and accuracies are those of the files of results."""
    pages = ("README.md", "benchmarks/README.md", "docs/results.md")
    for name in pages:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name in ("benchmarks/results", "docs/results"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_results.write_pages(tmp_path)
    for name in pages:
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), (
            "run python benchmarks/write_results.py"
        )


GPU_SUITE = """
import pytest, torch
from clock import DeviceClock
from ptgm_fast.profiling.device import CudaTimer

class Stream:
    '''A device whose work takes its own time: launching costs the host nothing, waiting brings the clocks together.'''
    done = 0.0
    waits = 0

    def is_current_stream_capturing(self): return False
    def current_stream(self, device): return self
    def synchronize(self, device): self.waits += 1
    def Event(self, enable_timing): return Event(self)

class Event:
    def __init__(self, stream): self.stream = stream
    def record(self, stream): self.at, self.waits = stream.done, stream.waits
    def elapsed_time(self, end):
        assert self.stream.waits > end.waits, "the device had not passed the event yet"
        return 1e3 * (end.at - self.at)

stream = Stream()

def kernel():
    stream.done += 0.25

@pytest.mark.benchmark(timer=DeviceClock(CudaTimer(torch.device("cuda"), stream)))
@pytest.mark.parametrize("contender", ["ours", "eager"])
def test_kernel(benchmark, contender):
    benchmark.group = "kernel"
    benchmark.pedantic(kernel, rounds=4, iterations=10)
"""


def test_the_gpus_clock_is_the_time_between_its_events(tmp_path: Path) -> None:
    """By a stand-in for `torch.cuda`; no GPU has run it."""
    done = run_suite(tmp_path, "--rounds", "2", suite=GPU_SUITE)
    assert done.returncode == 0, done.stdout + done.stderr
    raw = json.loads((tmp_path / "raw.json").read_text())
    for entry in raw["benchmarks"]:
        assert entry["stats"]["data"] == pytest.approx([0.25] * 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--device", "cuda")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "torch sees no CUDA device here" in line
    assert not (tmp_path / "raw.json").exists()
