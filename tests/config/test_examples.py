"""The configs that are shown as examples are configs."""

from pathlib import Path

import pytest

from ptgm_fast.config import load_config

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.name)
def test_examples_parse(file: Path) -> None:
    config = load_config(file)
    assert config.task == file.stem


def test_photographs_are_what_its_page_says() -> None:
    config = load_config(next(f for f in EXAMPLES if f.stem == "photographs"))
    page = (EXAMPLES[0].parents[1] / "docs" / "photographs.md").read_text()
    shown = config.pp.steps * config.pp.batch_size
    assert f"{shown:,} views: each image {shown / config.synthesis.images:.0f} times" in page
    assert f"--count {config.synthesis.images} " in page
    assert config.data.image_size == 224
    timm = pytest.importorskip("timm")
    for name in (config.source.classifier.network, config.target.network):
        assert timm.is_model(name.removeprefix("timm:"))
    # Not in the file: timm states them.
    assert config.source.classifier.mean == (0.485, 0.456, 0.406)
    assert config.source.classifier.std == (0.229, 0.224, 0.225)
