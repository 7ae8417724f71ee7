"""Runs with the rewritten generator, and with a user's own generator."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from on_disk import weights
from ptgm_fast.config import RunConfig
from ptgm_fast.models import build, save_weights
from ptgm_fast.runs.train import train

Tiny = Callable[..., RunConfig]


def test_the_rewritten_generator_makes_the_same_run(tiny: Tiny, tmp_path: Path) -> None:
    # At the usual rates training amplifies what is rounded otherwise.
    calm = ("precision=float32", "pp.lr=0.01", "training.lr=0.01")
    both = [
        train(tiny(f"source.optimize={choice}", *calm), tmp_path / choice)
        for choice in ("true", "false")
    ]
    rewritten, original = (summary["source"]["optimized"] for summary in both)
    assert original is None
    assert rewritten["left"] is None
    assert rewritten["difference"] <= 1e-5
    counts = rewritten["multiply_adds_per_image"]
    assert counts["after"] < counts["before"]
    first, second = (weights(tmp_path / choice) for choice in ("true", "false"))
    # Images differ by rounding, and so do the weights, but nothing else.
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "network", ["DCGAN", "Indexed?soft=sample-class", "Indexed?soft=mix-embedding"]
)
def test_a_generator_of_ones_own(
    network: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run with a module by URI, rewritten; how it handles soft labels is in the summary."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "generators"))
    num_classes, size = (10, 8) if network == "DCGAN" else (5, 4)
    classifier = build("ptgm:cnn-small", num_classes=num_classes, channels=3, image_size=size)
    save_weights(classifier, tmp_path / "c.safetensors")
    config = tiny(
        f"source.generator=module:own_dcgan:{network}",
        "source.classifier.network=ptgm:cnn-small",
        f"source.classifier.weights={tmp_path / 'c.safetensors'}",
        "source.optimize=true",
    )
    source = train(config, tmp_path / "run")["source"]
    assert source["soft_labels"] == (network.partition("=")[2] or "soft-vector")
    assert source["optimized"]["left"] is None
