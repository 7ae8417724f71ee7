"""The commands that deal with generators, classifiers and the machine, and their options."""

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
            "--out",
            metavar="DIR",
            help="Output folder: a new one, or one that this command started to fill.",
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="folder (of PNGs), pool (readable by training) or webdataset (tar shards).",
        ),
    ] = "folder",
    shard: Annotated[
        str,
        typer.Option(
            "--shard", metavar="I/N", help="Make only the I-th of N shares of the images."
        ),
    ] = "1/1",
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Measure a few batches and print expected time, disk and memory; write nothing.",
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
    """Write labelled pseudo images: a folder, tar shards or a pool. If stopped, run the same command again to finish."""
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
        Path, typer.Argument(metavar="CONFIG.toml", help="Config of the source pair to train.")
    ],
    out: OutOption = None,
    seed: SeedOption = None,
    settings: SetOption = None,
    classifier_only: Annotated[
        bool,
        typer.Option(
            "--classifier-only",
            help="Train only a classifier, on samples of the generator named in a run's config.",
        ),
    ] = False,
) -> None:
    """Train a source pair on your own labelled images. The pair is a conditional generator and a classifier."""
    from ptgm_fast.cli.source import run, run_classifier

    (run_classifier if classifier_only else run)(config, out, seed, settings or [])


def doctor() -> None:
    """Report what is available and what is missing. Covers the device, kernel implementations and extras."""
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
            "--truncation", help="Truncation, for generators whose statistics depend on it."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", metavar="N", min=1, help="Batch size for timing.")
    ] = 32,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Timed rounds of each generator; 0 skips timing.")
    ] = 5,
) -> None:
    """Rewrite a frozen generator into an equivalent, cheaper one. Reports what each pass saved and the speed of both."""
    from ptgm_fast.cli.optimize import run

    run(generator, device, truncation, batch, rounds)


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE.pkl", help="NVIDIA's StyleGAN2-ADA or StyleGAN3 pickle."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.safetensors", help="File to write (default: next to the pickle)."
        ),
    ] = None,
    network: Annotated[
        str, typer.Option("--network", help="G_ema (averaged weights) or G.")
    ] = "G_ema",
) -> None:
    """Convert a StyleGAN pickle to safetensors. No code in the pickle is run."""
    from ptgm_fast.cli.convert import run

    run(source, out, network)
