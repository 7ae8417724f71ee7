"""The commands about generators, classifiers and the machine, and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ptgm_fast.cli.options import (
    ConfigArgument,
    OriginalOption,
    OutOption,
    SeedOption,
    SetOption,
    with_original,
)


def synthesize(
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Number of images.")],
    config: ConfigArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Output folder: new, or what this command began."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="folder (of PNGs), pool (training reads it) or webdataset (tar shards).",
        ),
    ] = "folder",
    shard: Annotated[
        str,
        typer.Option("--shard", metavar="I/N", help="Make the I-th of N shares of the images."),
    ] = "1/1",
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Measure a few batches, print time, disk and memory; write nothing."
        ),
    ] = False,
    conditioned: Annotated[
        bool,
        typer.Option(
            "--conditioned", help="Condition on the target images instead of uniform source labels."
        ),
    ] = False,
    seed: SeedOption = None,
    settings: SetOption = None,
    no_optimize: OriginalOption = False,
) -> None:
    """Write labelled pseudo images: a folder, tar shards, or a pool. Stopped, the same command makes the rest."""
    from ptgm_fast.cli.synthesize import run

    run(
        config,
        count,
        out,
        conditioned,
        seed,
        with_original(settings, no_optimize),
        format,
        shard,
        estimate,
    )


def source(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.toml", help="Description of the source pair to train.")
    ],
    out: OutOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    classifier_only: Annotated[
        bool,
        typer.Option(
            "--classifier-only",
            help="Train only a classifier, on the samples of the generator that a run's config names.",
        ),
    ] = False,
) -> None:
    """Train a source pair - a conditional generator and a classifier - from labelled images of your own."""
    from ptgm_fast.cli.source import run, run_classifier

    (run_classifier if classifier_only else run)(config, out, seed, settings or [])


def doctor() -> None:
    """Say which device, implementations and extras are present, and what is missing."""
    from ptgm_fast.cli.doctor import run

    run()


def optimize(
    generator: Annotated[
        str, typer.Argument(metavar="GENERATOR", help="`letters`, a folder with a card, or a URI.")
    ],
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
    truncation: Annotated[
        float | None,
        typer.Option(
            "--truncation", help="For a generator whose truncation selects its statistics."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Batch size of the timing.")
    ] = 32,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Timed rounds of each; 0 leaves the timing out.")
    ] = 5,
) -> None:
    """Rewrite a frozen generator into an equal, cheaper one; say what each pass saved and how fast both are."""
    from ptgm_fast.cli.optimize import run

    run(generator, device, truncation, batch, rounds)


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE.pkl", help="NVIDIA's pickle of StyleGAN2-ADA or StyleGAN3."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.safetensors", help="Default: beside the pickle."),
    ] = None,
    network: Annotated[str, typer.Option("--network", help="G_ema (the average) or G.")] = "G_ema",
) -> None:
    """Write a StyleGAN pickle as safetensors; nothing of the pickle is run."""
    from ptgm_fast.cli.convert import run

    run(source, out, network)
