"""`profile`: what it writes, what it says, what it refuses to read."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ptgm_fast import FastSampler, generators
from ptgm_fast.config import RunConfig
from ptgm_fast.errors import UserError
from ptgm_fast.profiling import Profile, profile, read_profile
from ptgm_fast.profiling.bottleneck import SECTION, bottleneck, moving_setting
from ptgm_fast.profiling.schema import SpanTotals, StageProfile
from ptgm_fast.profiling.summary import overlap
from ptgm_fast.training.context import Context


def test_around_ones_own_loop(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "mine"
    with profile(folder, sample_seconds=0.01) as p:
        for step in range(30):
            with p("forward"):
                time.sleep(0.002)
                with p("attention"):
                    pass
            p.counter("ring depth", step % 3)
            p.step()
        p.images("loop", images_trained=60)
    read = read_profile(folder)
    assert read == p.result
    assert read.complete
    (loop,) = read.stages
    assert (loop.name, loop.steps, loop.images_trained) == ("loop", 30, 60)
    assert loop.steady
    assert loop.steady.first_step + loop.steady.steps - 1 == 30
    assert loop.steady.median_step_seconds >= 0.002
    spans = {span.path: span for span in loop.spans}
    assert {path: span.count for path, span in spans.items()} == {
        ("forward",): 30,
        ("forward", "attention"): 30,
    }
    assert sum(loop.phases().values()) == pytest.approx(loop.seconds)
    assert loop.overlap is None
    assert "forward" in read.bottleneck
    rss = next(gauge for gauge in read.hardware.gauges if gauge.name == "rss")
    assert rss.greatest <= (read.hardware.peak_rss_bytes or 0)
    assert rss.mean == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
    trace = json.loads((folder / "trace.json").read_text())
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(slices) == read.trace_events == 61
    assert sum(e["dur"] for e in slices if e["name"] == "loop") == pytest.approx(
        1e6 * loop.seconds, rel=1e-6
    )
    assert sorted(p.name for p in folder.iterdir()) == ["profile.json", "trace.json"]
    assert "hardware sampler" not in {thread.name for thread in threading.enumerate()}


def test_an_exception_leaves_a_profile_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), profile(tmp_path) as p, p("forward"):
        raise ZeroDivisionError
    read = read_profile(tmp_path)
    assert not read.complete
    assert read.stages[0].spans[0].path == ("forward",)


def test_a_producer_thread_overlaps_and_is_seen_to(tmp_path: Path) -> None:
    """20 ms of production beside 30 ms of training: it fits in, so nearly all of it is hidden."""
    made, free = threading.Semaphore(0), threading.Semaphore(2)

    with profile(tmp_path) as p:

        def produce() -> None:
            for _ in range(20):
                with p("ring wait"):
                    free.acquire()
                with p("generator"):
                    time.sleep(0.02)
                made.release()

        producer = threading.Thread(target=produce, name="producer")
        producer.start()
        for _ in range(20):
            with p("ring wait"):
                made.acquire()
            free.release()
            with p("forward"):
                time.sleep(0.03)
            p.step()
        producer.join()
    (loop,) = read_profile(tmp_path).stages
    assert loop.overlap
    assert loop.overlap.efficiency is not None
    assert loop.overlap.efficiency > 0.6
    assert loop.overlap.producer_wait_seconds > 0
    assert loop.overlap.hideable_seconds == pytest.approx(
        min(loop.overlap.producer_seconds, loop.overlap.consumer_seconds)
    )
    names = {
        e["args"]["name"]
        for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        if e["name"] == "thread_name"
    }
    assert names == {"consumer (main thread)", "producer (producer)"}


@pytest.mark.usefixtures("two_threads")
def test_the_engines_producer_is_a_track_beside_the_trainer(tmp_path: Path) -> None:
    sampler = FastSampler(
        generators.load("letters"),
        batch_size=64,
        overlap="always",
        device="cpu",
        spans=(p := profile(tmp_path)),
    )
    with p, sampler:
        for batch, _ in zip(sampler.uniform(), range(4), strict=False):
            with p("forward"):
                batch.images.sum()
            p.step()
    (loop,) = read_profile(tmp_path).stages
    found = {(span.lane, *span.path) for span in loop.spans}
    # Both sides wait, each in its own track.
    assert found >= {
        ("main", "forward"),
        ("main", "ring wait"),
        ("ptgm-fast producer", "ring wait"),
    }
    assert ("ptgm-fast producer", "generator") in found
    assert ("main", "generator") not in found
    assert loop.overlap
    assert loop.overlap.producer_seconds > 0
    assert loop.overlap.consumer_wait_seconds > 0
    assert loop.overlap.producer_wait_seconds > 0


def totals(lane: str, *path: str, seconds: float) -> SpanTotals:
    return SpanTotals(
        lane=lane,
        path=path,
        count=1,
        seconds=seconds,
        host_seconds=seconds,
        on_device=False,
        steady_count=0,
        steady_seconds=0.0,
    )


def test_overlap_efficiency_is_the_hidden_share_of_what_could_be_hidden() -> None:
    spans = [
        totals("main", "forward", seconds=6.0),
        totals("main", "ring wait", seconds=1.0),
        totals("producer", "generator", seconds=4.0),
        totals("producer", "ring wait", seconds=3.0),
    ]
    found = overlap(spans, None, 7.0)
    assert found
    # 4 + 6 one after the other; it took 7: 3 of the 4 seconds are hidden.
    assert (found.producer_seconds, found.consumer_seconds) == (4.0, 6.0)
    assert (found.hidden_seconds, found.hideable_seconds, found.efficiency) == (3.0, 4.0, 0.75)
    assert found.producer_wait_seconds == 3.0
    # A trainer that waits for everything hides nothing.
    spans[1] = totals("main", "ring wait", seconds=4.0)
    serial = overlap(spans, None, 10.0)
    assert serial
    assert serial.efficiency == 0.0
    assert overlap(spans[:2], None, 7.0) is None


def test_a_context_is_watched_and_still_told(tmp_path: Path) -> None:
    told: list[int] = []
    with profile(tmp_path, stage=None) as p:
        context = p.watch(Context(on_step=lambda stage, step, steps: told.append(step)))
        with context.spans("pp"):
            for step in range(1, 4):
                with context.spans("forward"):
                    pass
                context.counter("images synthesized", 10.0 * step)
                context.counter("images served", 8.0 * step)
                context.on_step("pp", step, 3)
    assert told == [1, 2, 3]
    (pp,) = read_profile(tmp_path).stages
    assert (pp.images_synthesized, pp.images_served) == (30, 24)
    assert pp.steady is None


def test_operators_of_some_steps_are_profiled_and_not_counted_as_steady(tmp_path: Path) -> None:
    x = torch.ones(8, 8)
    with profile(tmp_path, ops_steps=2) as p:
        for _ in range(40):
            with p("forward"):
                x = (x @ x).clamp(0, 1)
            p.step()
    assert "aten::mm" in (tmp_path / "ops-loop.txt").read_text()
    names = [
        e["name"]
        for e in json.loads((tmp_path / "ops-loop-trace.json").read_text())["traceEvents"]
        if "name" in e
    ]
    assert names.count("aten::mm") == 2
    (loop,) = read_profile(tmp_path).stages
    assert loop.steps == 40
    assert loop.steady
    assert loop.steady.steps <= 40 - 2 - loop.steady.first_step + 1
    forward = next(span for span in loop.spans if span.path == ("forward",))
    assert forward.steady_count == loop.steady.steps


def setting_exists(name: str) -> bool:
    model: Any = RunConfig
    for part in name.split("."):
        if part not in model.model_fields:
            return False
        model = model.model_fields[part].annotation
    return True


@pytest.mark.parametrize("stage", SECTION)
@pytest.mark.parametrize(
    "phase",
    [
        "latents",
        "conditioning",
        "generator",
        "views",
        "classifier",
        "forward",
        "loss",
        "backward",
        "optimizer",
        "evaluation",
        "checkpoint",
        "other",
    ],
)
def test_the_bottleneck_names_a_setting_that_exists(stage: str, phase: str) -> None:
    setting = moving_setting(stage, phase)
    assert setting
    assert setting_exists(setting[0])
    spans = (totals("main", phase, seconds=9.0),) if phase != "other" else ()
    profiled = StageProfile(
        name=stage, seconds=10.0, steps=5, steady=None, spans=spans, overlap=None
    )
    sentence = bottleneck([profiled])
    assert phase in sentence
    assert f"--set {setting[0]}=" in sentence
    assert sentence.count(".\n") == 0


def test_a_waiting_trainer_is_told_what_its_producer_does() -> None:
    spans = (
        totals("main", "ring wait", seconds=8.0),
        totals("main", "forward", seconds=1.0),
        totals("producer", "generator", seconds=7.0),
        totals("producer", "views", seconds=2.0),
    )
    stage = StageProfile(name="p-ssl", seconds=9.0, steps=5, steady=None, spans=spans, overlap=None)
    sentence = bottleneck([stage])
    assert "waits for its producer" in sentence
    assert "generator" in sentence
    assert "p_ssl.batch_size" in sentence


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("good")
    with profile(folder) as p:
        p.step()
    return (folder / "profile.json").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "--profile"),
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "", "not valid JSON"),
        (lambda text: "[1, 2]", "not a ptgm-fast profile"),
        (
            lambda text: text.replace('"version": 2', '"version": 3', 1),
            "version 3.*reads version 2",
        ),
        (lambda text: text.replace('"num_threads"', '"threads"', 1), "threads"),
        (lambda text: text.replace('"seconds": ', '"seconds": -', 1), "greater than or equal"),
    ],
    ids=["none", "half", "empty", "another file", "another version", "unknown key", "negative"],
)
def test_what_is_no_profile_is_refused_with_the_fix(
    tmp_path: Path, good: str, damage: Any, message: str
) -> None:
    assert Profile.model_validate_json(good)
    if damage:
        (tmp_path / "profile.json").write_text(damage(good))
    with pytest.raises(UserError, match=message) as raised:
        read_profile(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_the_page_about_it_names_every_field() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "profiling.md").read_text()
    schema = Profile.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for field in part["properties"]:
            assert field in page, f"docs/profiling.md lacks {field}"


def test_mistakes_in_its_arguments_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for arguments in ({"ops_steps": -1}, {"max_events": 0}, {"sample_seconds": 0.0}):
        with pytest.raises(UserError, match="at least"):
            profile(tmp_path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a file"):
        profile(tmp_path / "file")
