"""The page without a browser: its parts and numbers, what a run folder must hold, what is refused."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import confusion_matrix

from ptgm_fast.config import load_config
from ptgm_fast.data import ImageSet
from ptgm_fast.errors import UserError
from ptgm_fast.models import build
from ptgm_fast.runs.report import write_report
from ptgm_fast.runs.task import build_task

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Elements, ids, texts; fails on a tag that is closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(tmp_path: Path, *folders: Path) -> Page:
    return Page(write_report(folders, tmp_path / "r.html").read_text(encoding="utf-8"))


def test_every_part_is_there_for_runs_side_by_side(folders: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, folders / "profiled", folders / "plain", folders / "methods")
    labels = [svg["aria-label"] or "" for svg in page.all("svg")]
    for start, count in (
        ("pp: loss and share", 2),
        ("p-ssl: loss and share", 2),
        ("Seconds by stage", 1),
        ("Timeline of", 1),
        ("Confusion matrix", 2),
        ("Reliability diagram", 2),
        ("Test accuracy of 8 methods over 5 seeds", 1),
    ):
        assert sum(label.startswith(start) for label in labels) == count, (start, labels)
    for name in ("profiled", "plain"):
        summary = json.loads((folders / name / "summary.json").read_text())
        assert f"{100 * summary['target']['test_accuracy']:.2f} %" in page.text
    profile = json.loads((folders / "profiled" / "profile.json").read_text())
    assert profile["bottleneck"] in page.text
    methods = json.loads((folders / "methods" / "compare.json").read_text())["methods"]
    for method in methods.values():
        assert f"{100 * method['mean']:.2f} ± {100 * method['std']:.2f}" in page.text
    assert page.text.count("The source classifier predicts") == 2
    assert "train with --profile" in page.text
    assert (folders / "plain" / "config.toml").read_text() in page.text
    # Ten targets a run with eight pseudo samples each; every picture says what it is.
    pictures = page.all("img")
    assert len(pictures) == 2 * 10 * 9
    assert all(picture["alt"] for picture in pictures)


def with_baselines(run: Path, **accuracies: float) -> Path:
    """Baselines of these accuracies beside a run."""
    rows = {
        name: {
            "test_accuracy": [a],
            "mean": a,
            "std": 0,
            "ece": 0,
            "seconds": 7,
            "images_synthesized": 0,
        }
        for name, a in accuracies.items()
    }
    (run / "baselines").mkdir(exist_ok=True)
    report = {"methods": rows, "verdict": "This run: as told."}
    (run / "baselines" / "compare.json").write_text(json.dumps(report))
    return run


def test_the_headline_stands_before_the_table(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    accuracy, seconds = (
        summary["target"]["test_accuracy"],
        sum(stage["seconds"] for stage in summary["stages"].values()),
    )

    def headline() -> str:
        page = page_of(tmp_path, run)
        text = page.text[page.text.index("Settings and environment") :]
        return text[: text.index("run" + "task")]

    said = headline()
    assert (
        f"{100 * accuracy:.2f} % of 30 test images correct, from 15 labelled images in {seconds:.0f} s"
        in said
    )
    # A random pair: the check warns, and that comes first.
    assert "Next: fix what the check of the source pair warns about" in said
    check = json.loads((run / "check.json").read_text())
    (run / "check.json").write_text(json.dumps({**check, "warnings": []}))
    assert f"Next: ptgm-fast train --resume --baselines --out {run}" in headline()
    with_baselines(run, **{"scratch": accuracy - 0.1, "this run": accuracy})
    said = headline()
    assert "This run: as told." in said
    assert f"Next: ptgm-fast compare {run}/config.toml --seeds 5 tells the gain from chance" in said
    with_baselines(run, **{"scratch": 0.1, "soft-target": accuracy, "this run": accuracy})
    assert "Next: on this seed soft-target alone is as good and takes 7 s" in headline()
    with_baselines(run, scratch=0.1)
    with pytest.raises(UserError, match="needs a row 'this run'"):
        write_report([run])


def test_a_stage_that_was_validated_says_what_it_gained(folders: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, folders / "plain")
    stage = json.loads((folders / "plain" / "summary.json").read_text())["stages"]["p-ssl"]
    assert "p-ssl: validation accuracy " in page.text
    assert f"the stage took {stage['seconds'] / 60:.1f} min" in page.text
    # The source head's method has no threshold.
    assert "mask_rate" in (folders / "plain" / "metrics.jsonl").read_text()
    assert "mask rate" not in page.text


def test_it_asks_nothing_of_a_network_and_runs_nothing(folders: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, folders / "profiled", folders / "methods")
    assert not page.all("script")
    assert not page.all("link")
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#")), (tag, value)
    policies = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policies[0]["content"] or "")


def test_names_and_links_in_the_page_are_unique_and_lead_somewhere(
    folders: Path, tmp_path: Path
) -> None:
    page = page_of(tmp_path, folders / "profiled", folders / "plain", folders / "methods")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or ""
            assert not target.startswith("#") or target[1:] in ids, target


def test_what_a_user_named_is_text(folders: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path, folders / "profiled")
    assert "a <b> & $c$" in page.text
    assert not page.all("b")


def test_the_evaluation_file_counts_the_test_predictions(folders: Path) -> None:
    """Against scikit-learn, with the weights loaded into the plain network."""
    from safetensors.torch import load_file

    folder = folders / "plain"
    test: ImageSet = build_task(load_config(folder / "config.toml")).data.test
    network = build("ptgm:resnet-small", num_classes=3, channels=1, image_size=8).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        probabilities = network((test.images.float() / 255 - 0.5) / 0.5).softmax(1)
    record = json.loads((folder / "evaluation.json").read_text())
    expected = confusion_matrix(test.labels, probabilities.argmax(1), labels=range(3))
    assert record["confusion"] == expected.tolist()
    bins = record["reliability"]
    assert sum(b["count"] for b in bins) == record["images"] == len(test)
    gap = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(test)
    assert gap == pytest.approx(record["ece"], abs=1e-9)
    for position, b in enumerate(bins):
        if b["count"]:
            assert position / 15 - 1e-6 <= b["confidence"] <= (position + 1) / 15 + 1e-6


def test_the_pairs_file_shows_the_target_images(folders: Path) -> None:
    import numpy as np
    from PIL import Image

    folder = folders / "plain"
    record = json.loads((folder / "pairs.json").read_text())
    with Image.open(folder / "pairs.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (10 * 8, 9 * 8)
    train = build_task(load_config(folder / "config.toml")).data.train
    pixels = train.images[:, 0].numpy()
    for row, target in enumerate(record["targets"]):
        tile = sheet[8 * row : 8 * row + 8, :8]
        (place,) = [i for i, p in enumerate(pixels) if (p == tile).all()][:1]
        assert train.class_names[int(train.labels[place])] == target["class_name"]
        assert 0 < sum(target["soft_label"].values()) <= 1.001


def cut(name: str) -> Callable[[Path], Any]:
    def damage(run: Path) -> None:
        text = (run / name).read_text()
        (run / name).write_text(text[: len(text) // 2])

    return damage


def edit(name: str, **changes: Any) -> Callable[[Path], Any]:
    def damage(run: Path) -> None:
        values = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**values, **changes}))

    return damage


def broken_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], '{"stage": "pp', *lines[2:]]) + "\n")


def small_picture(run: Path) -> None:
    from PIL import Image

    Image.new("L", (4, 4)).save(run / "pairs.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda run: (run / "config.toml").unlink(), "holds no run"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "empty or missing.*--resume"),
        (lambda run: (run / "metrics.jsonl").unlink(), "empty or missing"),
        (broken_line, "damaged: line 2 of"),
        (lambda run: (run / "metrics.jsonl").write_text('{"epoch": 1}\n'), "no metrics of a stage"),
        (lambda run: (run / "metrics.jsonl").write_text('{"method": "pp"}\n'), "run compare again"),
        (cut("summary.json"), "not valid JSON"),
        (
            lambda run: (run / "summary.json").write_text("{}"),
            "task: Field required.*A report needs folders",
        ),
        (cut("profile.json"), "not valid JSON"),
        (edit("profile.json", version=1), "version 1"),
        (cut("trace.json"), "not valid JSON"),
        (lambda run: (run / "trace.json").write_text("{}"), "no complete traceEvents"),
        (
            lambda run: (run / "trace.json").write_text('{"traceEvents": [{"ph": "X"}]}'),
            "no complete",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"stage": "pp", "step": "a"}\n'),
            "no metrics",
        ),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n"), "no metrics of a stage"),
        (cut("evaluation.json"), "not valid JSON"),
        (edit("evaluation.json", version=2), "version 2.*reads version 1.*without it"),
        (edit("pairs.json", samples=3), "describes"),
        (small_picture, "4x4"),
        (lambda run: (run / "pairs.png").write_text("no picture"), "cannot be read"),
        (lambda run: (run / "compare.json").write_text("{}"), "Field required.*Run compare again"),
        (
            lambda run: (run / "compare.json").write_text('{"methods": {"pp": {}}}'),
            "Field required.*Run compare again",
        ),
    ],
)
def test_damage_is_said_and_nothing_is_written(
    run: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(run)
    with pytest.raises(UserError, match=message):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_what_a_folder_lacks_is_left_out_and_said(run: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "evaluation.json", "pairs.json", "profile.json", "trace.json"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "p-ssl", "st')
    page = page_of(tmp_path, run)
    for words in ("not finished", "--resume", "evaluation.json", "pairs.json", "No profile"):
        assert words in page.text
    assert len(page.all("svg")) == 2


def test_the_place_of_the_page(run: Path, tmp_path: Path) -> None:
    assert write_report([run]) == run / "report.html"
    for out in (tmp_path / "no" / "r.html", tmp_path):
        with pytest.raises(UserError, match="a file in a folder that exists"):
            write_report([run], out)
    with pytest.raises(UserError, match="twice"):
        write_report([run, tmp_path / "." / "run"], tmp_path / "r.html")
